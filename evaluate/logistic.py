"""Multinomial logistic regression on features that were computed once, by scikit-learn."""

from __future__ import annotations

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
