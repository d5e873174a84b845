"""Linear classifiers on features, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from swav_tf.plumbing.system import blas_threads_for


def linear_accuracy(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """Return the share of queries (0 to 1) that multinomial logistic regression classifies correctly.

    It learns from features (N, F), standardized, with the L2 penalty C = 1; the queries are (M, F).
    """
    from sklearn.linear_model import LogisticRegression

    classifier = _standardized(LogisticRegression(max_iter=2000))
    with blas_threads_for(features.size * len(np.unique(labels))):
        return float(classifier.fit(features, labels).score(queries, query_labels))


def fit_ridge(features: np.ndarray, labels: np.ndarray) -> Any:
    """Fit scikit-learn's least-squares classifier, which is fast and deterministic, on standardized features (n, F).

    The penalty of the squared weights, 0.01 n, is weak, and enough for fewer images than features.
    """
    from sklearn.linear_model import RidgeClassifier

    classifier = RidgeClassifier(alpha=0.01 * len(labels))
    return _standardized(classifier).fit(np.asarray(features, np.float64), labels)


def _standardized(classifier: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), classifier)
