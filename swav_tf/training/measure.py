"""What a trained classifier is worth on labelled images, after its training or instead of it."""

from __future__ import annotations

from swav_tf.data.bad_images import BadImages
from swav_tf.data.labels import labels_among, numbered, printable_names
from swav_tf.data.loader import ended_after
from swav_tf.data.sources import ImageSource
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.pretraining import Data
from swav_tf.runs.model_facts import BY_IMPORT, ModelFacts
from swav_tf.training.classifier import Classifier
from swav_tf.training.cluster import topology
from swav_tf.training.job import failures_explained
from swav_tf.training.validation import Counts, Validation


def measure(
    classifier: tuple[Classifier, ProbeRecipe | FinetuneRecipe, ModelFacts],
    source: ImageSource,
    settings: Data,
    *,
    batch_size: int = 128,
) -> tuple[Counts, tuple[str, ...]]:
    """Counts over labelled images, and the names of the classes.

    Args:
        classifier: as `load_classifier` gives it. Where an import left its classes unnamed, those of the images
            name them, in order.
        source: the images.
        settings: view and threads.
        batch_size: images that the model sees at once.

    Raises:
        DataError: the images have no labels or other classes, or one cannot be read.
        SwavError: logits were not finite.
    """
    model, recipe, facts = classifier
    names = facts.class_names
    unnamed = facts.how == BY_IMPORT and names == numbered(len(names))
    if unnamed and len(source.class_names) == len(names):
        names = printable_names(source.class_names)
    labels = labels_among(names, source)
    team = topology(model.distribute_strategy)
    nothing_bad = BadImages(None, images=len(source), max_share=0)
    with failures_explained(recipe.train, team.replicas, nothing_bad), ended_after():
        validation = Validation(model, source, labels, settings, replica_batch_size=batch_size, team=team)
        return validation.measure(), names
