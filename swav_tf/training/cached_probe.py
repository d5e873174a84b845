"""The converged linear probe: logistic regression on features that are computed once, as a job."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.runs.model_facts import BY_CACHE
from swav_tf.training.classifier import Classifier
from swav_tf.training.classify import open_run, run_facts, save_results
from swav_tf.training.job import Result, open_job
from swav_tf.training.knn_monitor import readable_features
from swav_tf.training.logistic import check_fit, fit_classifier
from swav_tf.training.state import named_variables
from swav_tf.training.stopping import exit_now, stoppable
from swav_tf.training.validation import counts_of, tally


def probe_cached(
    recipe: ProbeRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> Result[Classifier]:
    """Fit logistic regression to features of the evaluation view, on one device of one process.

    The penalty is chosen on a held-out part of the TRAINING images, then all of them are used. Crops, optimizer and
    epochs of the recipe are ignored. Training features stay in memory (10.5 GB for ImageNet with 2048), and the solver
    needs about as much again for logits and their gradients. See `train_classifier` for the arguments.

    Raises:
        RecipeError, DataError, UsageError: before features are computed.
    """
    with open_job(recipe, run_dir, quiet=quiet, one_device=True) as job:
        _, start, data = open_run(job, model, how=BY_CACHE, from_scratch=from_scratch, fresh=fresh)
        classifier = start.build(recipe, class_count=len(data.class_names))
        images = len(data.validation)
        check_fit(classifier, data, recipe, others=images)  # before any features
        with stoppable(exit_now):
            # First: a validation image that cannot be read ends the job.
            queries, _ = readable_features(classifier, data.validation, range(images), recipe.data)
        fitted = fit_classifier(classifier, data, recipe, job.bad_images)
        arrays = {name: variable.numpy() for name, variable in named_variables(classifier).items()}
        job.start()
        job.store.write(0, arrays, {"how": BY_CACHE, "recipe": recipe.model_dump(mode="json")})

        sums = tally(classifier.classifier(queries), tf.constant(data.validation_labels))
        counts = counts_of([value.numpy() for value in sums])
        save_results(job, counts, data, title=f"{recipe.name}, cached features")
        return job.end(
            classifier,
            **run_facts(recipe, start, data, BY_CACHE),
            last=counts.as_dict(),
            bad_images=job.bad_images.count,
            **fitted,
        )
