"""Multinomial logistic regression on features that are in memory: full batch, L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

_BLOCK = 65_536  # rows whose logits are in memory at once


@dataclass(frozen=True)
class LinearClassifier:
    """Logits are features @ kernel + bias.

    Attributes:
        kernel: (F, C), float32.
        bias: (C,), float32.
    """

    kernel: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def logits(self, features: Floats) -> npt.NDArray[np.float32]:
        """(n, C) of features (n, F)."""
        return (features @ self.kernel + self.bias).astype(np.float32)


def fit_path(
    features: npt.NDArray[np.float32],
    labels: Labels,
    *,
    class_count: int,
    penalties: Sequence[float],
    max_iterations: int,
) -> dict[float, LinearClassifier]:
    """One classifier for each penalty, the stronger ones first, each beginning where the last one ended.

    Minimised is mean cross-entropy + penalty / 2 x the sum of squared weights of the features
    standardised by their own mean and deviation; the bias is free. The classifiers returned take
    features as they are.

    Args:
        features: (n, F).
        labels: (n,), 0 to class_count - 1.
        class_count: C.
        penalties: above or at 0.
        max_iterations: of L-BFGS, for each penalty.
    """
    from scipy.optimize import minimize

    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    # A feature that never changes tells nothing: its weight is kept at 0 by its own zeros.
    scale = np.where(deviation > 0, deviation, 1.0)
    shape = (features.shape[1] + 1, class_count)
    loss_and_gradient = _objective(features, labels, mean, scale, shape)
    weights = np.zeros(shape)
    found = {}
    for penalty in sorted(penalties, reverse=True):

        def total(flat: Floats, penalty: float = penalty) -> tuple[float, Floats]:
            w = flat.reshape(shape)
            loss, gradient = loss_and_gradient(w)
            gradient[:-1] += penalty * w[:-1]
            return loss + 0.5 * penalty * float(np.square(w[:-1]).sum()), gradient.ravel()

        options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": 1e-6, "ftol": 1e-10}
        weights = minimize(total, weights.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(
            shape
        )
        kernel = weights[:-1] / scale[:, np.newaxis]
        bias = weights[-1] - mean @ kernel
        found[penalty] = LinearClassifier(kernel.astype(np.float32), bias.astype(np.float32))
    return found


def choose_penalty(
    features: npt.NDArray[np.float32],
    labels: Labels,
    *,
    class_count: int,
    penalties: Sequence[float],
    held_out_share: float,
    seed: int,
    max_iterations: int,
) -> dict[float, float]:
    """Top-1 accuracy (0 to 1) of each penalty on a held-out part of these images; the others are learnt from.

    Args:
        features: (n, F), with labels (n,).
        labels: 0 to class_count - 1.
        class_count: C.
        penalties: to compare.
        held_out_share: of the images, 0 to 1; at least one is held out, and one learnt from.
        seed: of which ones.
        max_iterations: of L-BFGS, for each penalty.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = min(max(1, round(held_out_share * len(labels))), len(labels) - 1)
    held_out, known = np.sort(order[:cut]), np.sort(order[cut:])
    fitted = fit_path(
        features[known],
        labels[known],
        class_count=class_count,
        penalties=penalties,
        max_iterations=max_iterations,
    )
    return {
        penalty: float((classifier.logits(features[held_out]).argmax(axis=1) == labels[held_out]).mean())
        for penalty, classifier in fitted.items()
    }


def best_penalty(accuracies: dict[float, float]) -> float:
    """The penalty with the highest accuracy; of equal ones the strongest."""
    return max(accuracies, key=lambda penalty: (accuracies[penalty], penalty))


def _objective(
    features: npt.NDArray[np.float32], labels: Labels, mean: Floats, scale: Floats, shape: tuple[int, int]
) -> Callable[[Floats], tuple[float, Floats]]:
    """Mean cross-entropy and its gradient (F + 1, C) at weights (F + 1, C), the last row the bias."""
    count, classes = len(labels), shape[1]
    shift, factor = tf.constant(mean, tf.float32), tf.constant(1.0 / scale, tf.float32)

    @tf.function(reduce_retracing=True)
    def block(x: tf.Tensor, y: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, ...]:
        x = (x - shift) * factor
        logits = x @ kernel + bias
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        error = tf.nn.softmax(logits) - tf.one_hot(y, classes)
        return loss, tf.matmul(x, error, transpose_a=True), tf.reduce_sum(error, axis=0)

    blocks = [
        (tf.constant(features[i : i + _BLOCK]), tf.constant(labels[i : i + _BLOCK]))
        for i in range(0, count, _BLOCK)
    ]

    def loss_and_gradient(weights: Floats) -> tuple[float, Floats]:
        kernel, bias = tf.constant(weights[:-1], tf.float32), tf.constant(weights[-1], tf.float32)
        loss, gradient = 0.0, np.zeros(shape)
        for x, y in blocks:
            part, of_kernel, of_bias = block(x, y, kernel, bias)
            loss += float(part)
            gradient[:-1] += of_kernel.numpy()
            gradient[-1] += of_bias.numpy()
        return loss / count, gradient / count

    return loss_and_gradient
