import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from rich.console import Console

from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.runs.checkpoint import Checkpoint
from swav_tf.training.cluster import Topology
from swav_tf.training.job import failures_explained, tell_what_changed
from swav_tf.training.watched import WorkerEnded
from tests.classifiers import tiny_classifier_recipe
from tests.swav_models import tiny_recipe


def told(before, now, *, replicas=(1, 1), trainable=True):
    """What is said, and warned of, when a run goes on."""
    outputs = io.StringIO(), io.StringIO()
    console, warnings = (Console(file=output, width=300) for output in outputs)
    facts = {"recipe": before.model_dump(mode="json"), "replicas": replicas[0]}
    tell_what_changed(
        Checkpoint(step=7, arrays={}, facts=facts, path=Path("step-7")),
        SimpleNamespace(backbone=SimpleNamespace(trainable=trainable)),
        recipe=now,
        team=Topology("any", workers=1, worker=0, replicas=replicas[1], devices="CPU"),
        console=console,
        warnings=warnings,
    )
    return [output.getvalue() for output in outputs]


# Bug caught: settings that are free to change, and do so without a word.
def test_what_changed_is_told():
    assert told(tiny_recipe(), tiny_recipe()) == ["going on from step 7 (step-7)\n", ""]
    said, _ = told(tiny_recipe(), tiny_recipe(data__threads=3, checkpoint__keep_last=1), replicas=(1, 4))
    assert "1 replica(s) then, 4 now: the same batch of 8, 2 images each" in said
    assert "  checkpoint.keep_last: was 3, now 1\n  data.threads: was 1, now 3\n" in said


# Bugs caught: a run that is said to be the same although its batch statistics are of other images; a warning where
# nothing changes.
@pytest.mark.parametrize(
    ("before", "now", "replicas", "trainable", "images"),
    [
        (tiny_recipe(), tiny_recipe(), (1, 4), True, None),
        (tiny_recipe(), tiny_recipe(train__accumulation_steps=2), (4, 1), True, (8, 4)),
        (*[tiny_recipe(model__batch_norm={"synchronised": False})] * 2, (1, 4), True, (8, 2)),
        (
            tiny_classifier_recipe(FinetuneRecipe),
            tiny_classifier_recipe(FinetuneRecipe, train__accumulation_steps=4),
            *((2, 1), True, (128, 32)),
        ),
        # A frozen backbone, as a probe's, takes no statistics.
        (tiny_recipe(), tiny_recipe(train__accumulation_steps=2), (4, 1), False, None),
    ],
)
def test_other_batch_statistics_are_warned_of(before, now, replicas, trainable, images):
    _, warned = told(before, now, replicas=replicas, trainable=trainable)
    if images is None:
        assert warned == ""
    else:
        assert f"over {images[0]} images at once, and takes them over {images[1]} from here on" in warned


# Bug caught: 'start the same command to go on', with a code by which no scheduler does.
def test_a_worker_that_ended_unseen_is_something_to_try_again():
    with pytest.raises(WorkerEnded) as error, failures_explained(tiny_recipe().train, 2, None):
        raise tf.errors.UnavailableError(None, None, "connection reset")
    assert error.value.exit_code == 75
