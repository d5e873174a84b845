"""Linear classifiers on features, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

PENALTY = 0.01  # per image: weak, and enough for fewer images than features


def linear_accuracy(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """Return the share of queries (0 to 1) that multinomial logistic regression classifies correctly.

    Args:
        features: (N, F) to learn from, with labels (N,). They are standardized; the L2 penalty is C = 1.
        labels: integers.
        queries: (M, F) to classify, with labels query_labels (M,).
        query_labels: integers.
    """
    from sklearn.linear_model import LogisticRegression

    return float(
        _standardized(LogisticRegression(max_iter=2000)).fit(features, labels).score(queries, query_labels)
    )


def fit_ridge(features: np.ndarray, labels: np.ndarray, *, penalty: float = PENALTY) -> Any:
    """Fit a least-squares classifier, which is fast and deterministic, on standardized features.

    Args:
        features: (n, F).
        labels: (n,) integers.
        penalty: of the squared weights; multiplied by n.

    Returns:
        A scikit-learn classifier.
    """
    from sklearn.linear_model import RidgeClassifier

    classifier = RidgeClassifier(alpha=penalty * len(labels))
    return _standardized(classifier).fit(np.asarray(features, np.float64), labels)


def _standardized(classifier: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), classifier)
