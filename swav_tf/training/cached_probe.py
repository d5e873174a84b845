"""The converged linear probe: logistic regression on features that are computed once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.plumbing.log import log
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.runs.model_facts import BY_CACHE
from swav_tf.training.classify import ClassifierResult, open_run, run_facts, save_results
from swav_tf.training.features import extract_features
from swav_tf.training.job import open_job
from swav_tf.training.state import named_variables
from swav_tf.training.validation import counts_of, tally

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def probe_cached(
    recipe: ProbeRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> ClassifierResult:
    """Fit logistic regression to features of the evaluation view, on one device of one process.

    The penalty is chosen on a held-out part of the TRAINING images, then all of them are used. Crops, optimizer and
    epochs of the recipe are ignored. Training features stay in memory, twice: 21 GB for ImageNet with 2048.

    Args:
        recipe: images, view, seed, precision and `cached`.
        model: run folder of the pretraining; with `from_scratch` a recipe is enough.
        run_dir: folder of this run.
        from_scratch: initialize the backbone at random, for comparison.
        fresh: start over; the earlier run is moved into `previous-N/`.
        quiet: log only warnings.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
    """
    with open_job(recipe, run_dir, quiet=quiet, one_device=True) as job:
        start, data = open_run(
            job, recipe, model, how=BY_CACHE, from_scratch=from_scratch, fresh=fresh, in_steps=False
        )
        classifier = start.build(recipe, class_count=len(data.class_names))
        log.info("Computing features.")
        known = extract_features(classifier, data.train, range(len(data.train)), recipe.data)
        queries = extract_features(classifier, data.validation, range(len(data.validation)), recipe.data)
        seconds_features = round(time.perf_counter() - job.started, 2)

        held_out = choose_penalty(known, data.train_labels, recipe)
        penalty = best_penalty(held_out)
        _log_choice(held_out, penalty)
        classes, iterations = len(data.class_names), recipe.cached.max_iterations
        [(_, *weights)] = fit_path(known, data.train_labels, classes, [penalty], iterations)
        classifier.classifier.set_weights(weights)
        arrays = {name: variable.numpy() for name, variable in named_variables(classifier).items()}
        job.store.write(0, arrays, {"how": BY_CACHE, "recipe": recipe.model_dump(mode="json")})

        sums = tally(classifier.classifier(queries), tf.constant(data.validation_labels))
        counts = counts_of([value.numpy() for value in sums])
        save_results(job, counts, data, title=f"{recipe.name}, cached features")
        summary = job.write_summary(
            **run_facts(recipe, start, data, BY_CACHE),
            last=counts.as_dict(),
            penalty=penalty,
            held_out_top1={f"{value:g}": accuracy for value, accuracy in held_out.items()},
            seconds_features=seconds_features,
        )
        return ClassifierResult(model=classifier, run_dir=job.run_dir, summary=summary)


def fit_path(
    features: Floats, labels: Labels, class_count: int, penalties: Sequence[float], max_iterations: int
) -> Iterator[tuple[float, Floats, Floats]]:
    """Yield (penalty, kernel (F, C), bias (C,)) from the strongest penalty to the weakest.

    Each minimizes mean cross-entropy + penalty / 2 x the sum of squared weights of the standardized features; the
    bias has no penalty. Each fit starts from the previous one. Kernel and bias apply to features as they are.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    # Small products do not gain from threads, and on a busy machine become a hundred times slower.
    blas_threads = 1 if features.size * class_count < 1e8 else None
    scaler = StandardScaler()
    standardized = scaler.fit_transform(features)
    present = np.unique(labels)
    solver = LogisticRegression(warm_start=True, max_iter=max_iterations, tol=1e-6)
    for penalty in sorted(penalties, reverse=True):
        # scikit-learn fits two classes with one weight vector, the difference of both: half the penalty.
        strength = penalty * len(labels) / (2 if len(present) == 2 else 1)
        solver.set_params(C=1 / strength if strength else np.inf)
        with warnings.catch_warnings(), threadpool_limits(blas_threads, user_api="blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is a setting
            solver.fit(standardized, labels)
        weights, bias = solver.coef_.T / scaler.scale_[:, np.newaxis], solver.intercept_
        if len(present) == 2:
            weights, bias = np.hstack([-weights / 2, weights / 2]), np.concatenate([-bias / 2, bias / 2])
        kernel = np.zeros((features.shape[1], class_count))
        kernel[:, present] = weights
        full_bias = np.full(class_count, bias.min() - 10.0)  # classes without training images
        full_bias[present] = bias
        full_bias -= scaler.mean_ @ kernel
        yield penalty, kernel.astype(np.float32), full_bias.astype(np.float32)


def choose_penalty(features: Floats, labels: Labels, recipe: ProbeRecipe) -> dict[float, float]:
    """Return the top-1 accuracy (0 to 1) of each penalty on a held-out part of these images."""
    settings = recipe.cached
    order = np.random.default_rng(recipe.train.seed).permutation(len(labels))
    cut = min(max(1, round(settings.held_out_share * len(labels))), len(labels) - 1)
    held_out, known = np.sort(order[:cut]), np.sort(order[cut:])
    path = fit_path(
        features[known], labels[known], 1 + int(labels.max()), settings.penalties, settings.max_iterations
    )
    return {
        penalty: float(np.mean((features[held_out] @ kernel + bias).argmax(axis=1) == labels[held_out]))
        for penalty, kernel, bias in path
    }


def best_penalty(accuracies: dict[float, float]) -> float:
    """Return the penalty with the highest accuracy, of equal ones the strongest."""
    return max(accuracies, key=lambda penalty: (accuracies[penalty], penalty))


def _log_choice(held_out: dict[float, float], chosen: float) -> None:
    for penalty, accuracy in held_out.items():
        mark = "  <- chosen" if penalty == chosen else ""
        log.info("penalty %g: held-out top-1 %.2f %%%s", penalty, 100 * accuracy, mark)
    if len(held_out) > 1 and chosen in (min(held_out), max(held_out)):
        log.warning(
            "The best of cached.penalties, %g, is at the end of the grid. A better one may lie beyond; add some there.",
            chosen,
        )
