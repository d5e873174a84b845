"""Logistic regression on features in memory: the converged classifier of a probe, and where fine-tuning may start."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swav_tf.data.bad_images import BadImages
from swav_tf.data.labels import LabeledData
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import available_memory, blas_threads_for
from swav_tf.recipe.classifier import Cached, FinetuneRecipe, ProbeRecipe
from swav_tf.training.classifier import Classifier
from swav_tf.training.knn_monitor import readable_features
from swav_tf.training.stopping import exit_now, stoppable

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
FEWEST_HELD_OUT = 30  # images on which a penalty is chosen without a warning
_WITHOUT = "or do without it: `swav-tf probe --sgd`, `swav-tf finetune -o init_classifier=random`"
_ROWS = 65_536  # features of which the variances are computed at once


def fit_classifier(
    classifier: Classifier,
    data: LabeledData,
    recipe: ProbeRecipe | FinetuneRecipe,
    tally: BadImages,
) -> dict[str, Any]:
    """Fit the classifier to the features of the training images, in the evaluation view, until it converges.

    The penalty is chosen on a held-out part of the TRAINING images, then all of them are used.

    Args:
        classifier: receives kernel and bias; its backbone computes the features.
        data: the training images.
        recipe: the seed of the held-out part, and `cached`.
        tally: counts the images that cannot be read, which are left out.

    Returns:
        For the summary: the penalty that was chosen, the held-out accuracy (0 to 1) of each, the seconds for features.

    Raises:
        DataError, UsageError: those of `check_fit`, or too many images cannot be read.
    """
    check_fit(classifier, data, recipe)
    classes, settings = len(data.class_names), recipe.cached
    order, held_out = held_out_first(len(data.train), recipe)
    # TensorFlow can swallow an interrupt while it traces; nothing has to be saved.
    with stoppable(exit_now):
        log.info("Computing features.")
        began = time.perf_counter()
        features, read = readable_features(classifier, data.train, order, recipe.data, tally)
        if left_out := len(order) - len(read):
            log.warning(f"{left_out:,} of {len(order):,} training images cannot be read and are left out.")
        labels, held_out = data.train_labels[read], max(1, int(np.isin(order[:held_out], read).sum()))
        seconds = round(time.perf_counter() - began, 2)
        mean, scale = standardize(features)
        accuracies = choose_penalty(features, labels, held_out, settings)
        penalty = best_penalty(accuracies)
        _log_choice(accuracies, penalty, held_out)
        [(_, kernel, bias)] = fit_path(features, labels, classes, [penalty], settings.max_iterations)
        classifier.classifier.set_weights(for_raw_features(kernel, bias, mean, scale))
    return {
        "penalty": penalty,
        "held_out_top1": {f"{value:g}": accuracy for value, accuracy in accuracies.items()},
        "seconds_features": seconds,
    }


def check_fit(
    classifier: Classifier, data: LabeledData, recipe: ProbeRecipe | FinetuneRecipe, *, others: int = 0
) -> None:
    """Check what `fit_classifier` needs, before any feature is computed.

    Raises:
        DataError: there are fewer than two classes besides the held-out images.
        UsageError: the features, as much again for the solver, and those of `others` do not fit into memory.
    """
    order, held_out = held_out_first(len(data.train), recipe)
    if len(np.unique(data.train_labels[order[held_out:]])) < 2:
        raise DataError(
            "The cached probe needs training images of at least two classes in addition to those it holds out. "
            f"Received: {len(data.train):,} images, {held_out:,} held out. Add images, {_WITHOUT}."
        )
    train, features = len(data.train), int(classifier.backbone.output_shape[-1])
    needed, available = 4 * features * (2 * train + others), available_memory()
    if needed > available:
        raise UsageError(
            f"The features must fit into memory: {train + others:,} images x {features} numbers need "
            f"{needed / 2**30:.1f} GiB with the solver. Available: {available / 2**30:.1f} GiB. "
            f"Use --subset, {_WITHOUT}."
        )


def held_out_first(count: int, recipe: ProbeRecipe | FinetuneRecipe) -> tuple[npt.NDArray[np.int64], int]:
    """Return the numbers of all images, first those on which the penalty is chosen, and the number of these."""
    order = np.random.default_rng(recipe.train.seed).permutation(count)
    held_out = min(max(1, round(recipe.cached.held_out_share * count)), count - 1)
    return np.concatenate([np.sort(order[:held_out]), np.sort(order[held_out:])]), held_out


def standardize(features: Floats) -> tuple[Floats64, Floats64]:
    """Standardize features (n, F) in place; return the mean and scale that they had, (F,)."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for start in range(0, len(features), _ROWS):  # scikit-learn computes variances on a float64 copy
        scaler.partial_fit(features[start : start + _ROWS])
    features -= scaler.mean_
    features /= scaler.scale_
    return scaler.mean_, scaler.scale_


def for_raw_features(
    kernel: Floats64, bias: Floats64, mean: Floats64, scale: Floats64
) -> tuple[Floats, Floats]:
    """Return kernel and bias for features as they were before they were standardized."""
    kernel = kernel / scale[:, np.newaxis]
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def fit_path(
    features: Floats, labels: Labels, class_count: int, penalties: Sequence[float], max_iterations: int
) -> Iterator[tuple[float, Floats64, Floats64]]:
    """Yield (penalty, kernel (F, C), bias (C,)) from the strongest penalty to the weakest.

    Each minimizes mean cross-entropy + penalty / 2 x the sum of squared weights on standardized features; the bias has
    no penalty. Each fit starts from the previous one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    solver = LogisticRegression(warm_start=True, max_iter=max_iterations, tol=1e-6)
    for penalty in sorted(penalties, reverse=True):
        # scikit-learn fits two classes with one weight vector, the difference of both: half the penalty.
        strength = penalty * len(labels) / (2 if len(present) == 2 else 1)
        solver.set_params(C=1 / strength if strength else np.inf)
        with warnings.catch_warnings(), blas_threads_for(features.size * class_count):
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is a setting
            solver.fit(features, labels)
        weights, intercept = solver.coef_.T, solver.intercept_
        if len(present) == 2:
            weights = np.hstack([-weights / 2, weights / 2])
            intercept = np.concatenate([-intercept / 2, intercept / 2])
        kernel = np.zeros((features.shape[1], class_count))
        kernel[:, present] = weights
        bias = np.full(class_count, intercept.min() - 10.0)  # classes without training images
        bias[present] = intercept
        yield penalty, kernel, bias


def choose_penalty(features: Floats, labels: Labels, held_out: int, settings: Cached) -> dict[float, float]:
    """Return the top-1 accuracy (0 to 1) of each penalty on the first `held_out` images, fitted to the others.

    The features are standardized.
    """
    classes, iterations = 1 + int(labels.max()), settings.max_iterations
    path = fit_path(features[held_out:], labels[held_out:], classes, settings.penalties, iterations)
    accuracies = {}
    for penalty, kernel, bias in path:
        found = (features[:held_out] @ kernel.astype(np.float32) + bias).argmax(axis=1)
        accuracies[penalty] = float(np.mean(found == labels[:held_out]))
    return accuracies


def best_penalty(accuracies: dict[float, float]) -> float:
    """Return the penalty with the highest accuracy, of equal ones the strongest."""
    return max(accuracies, key=lambda penalty: (accuracies[penalty], penalty))


def _log_choice(accuracies: dict[float, float], chosen: float, held_out: int) -> None:
    for penalty, accuracy in accuracies.items():
        mark = "  <- chosen" if penalty == chosen else ""
        log.info("penalty %g: held-out top-1 %.2f %%%s", penalty, 100 * accuracy, mark)
    if len(accuracies) > 1 and held_out < FEWEST_HELD_OUT:
        log.warning(
            f"The penalty was chosen on only {held_out} held-out images. Use more images, or set one value in "
            "cached.penalties."
        )
    elif len(accuracies) > 1 and chosen in (min(accuracies), max(accuracies)):
        log.warning(
            "The best of cached.penalties, %g, is at the end of the grid. A better one may lie beyond it: extend the "
            "grid.",
            chosen,
        )
