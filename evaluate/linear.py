"""Linear classifiers on features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def linear_accuracy(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """Share of queries (0 to 1) that multinomial logistic regression classifies rightly.

    The features are standardised by the training features' mean and deviation; the L2 penalty is
    scikit-learn's default (C = 1).

    Args:
        features: (N, F) to learn from, with labels (N,).
        labels: integers.
        queries: (M, F) to classify, with labels query_labels (M,).
        query_labels: integers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features, labels)
    return float(classifier.score(queries, query_labels))


PENALTY = 0.01  # of the mean square: weak, and enough for fewer images than features


@dataclass(frozen=True)
class RidgeClassifier:
    """Scores are (features - mean) / deviation @ kernel + bias; the class is the one with the highest.

    Attributes:
        mean, deviation: (F,), of the features that it was fitted on.
        kernel: (F, C).
        bias: (C,).
    """

    mean: np.ndarray
    deviation: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Share (0 to 1) of features (n, F) that it gives their label (n,)."""
        scores = (features - self.mean) / self.deviation @ self.kernel + self.bias
        return float(np.mean(scores.argmax(axis=1) == labels))


def fit_ridge(features: np.ndarray, labels: np.ndarray, *, penalty: float = PENALTY) -> RidgeClassifier:
    """Least squares towards +1 for the label and -1 for the other classes, on standardised features.

    Minimised is the mean square of the error + penalty x the sum of squared weights; the bias is free. Where
    there are fewer images than features it is solved among the images, which is the same.

    Args:
        features: (n, F).
        labels: (n,), 0 to C - 1.
        penalty: above 0.
    """
    x = np.asarray(features, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)  # a feature that never changes tells nothing
    x = (x - mean) / deviation
    targets = np.where(labels[:, np.newaxis] == np.arange(labels.max() + 1), 1.0, -1.0)
    bias = targets.mean(axis=0)  # the features' mean is 0
    n, width = x.shape
    if n < width:
        kernel = x.T @ np.linalg.solve(x @ x.T + n * penalty * np.eye(n), targets - bias)
    else:
        kernel = np.linalg.solve(x.T @ x + n * penalty * np.eye(width), x.T @ (targets - bias))
    return RidgeClassifier(mean, deviation, kernel, bias)
