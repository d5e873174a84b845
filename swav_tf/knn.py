"""Weighted k-nearest-neighbour classification by cosine (arXiv 1805.01978, section 3.4). No TensorFlow."""

from __future__ import annotations

import numpy as np

CHUNK = 1024  # queries whose similarities are in memory at once


def knn_predict(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Labels of the queries by the vote of their k nearest features, each weighing exp(cosine / temperature).

    Args:
        features: (N, F) with known labels; any scale, rows are normalised here.
        labels: (N,) integers >= 0.
        queries: (M, F).
        k: neighbours, 1 <= k <= N.
        temperature: > 0; large values make all votes equal.

    Returns:
        (M,) predicted labels; exact search, in chunks of queries.

    Raises:
        ValueError: k or the shapes do not fit.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"`k` must be from 1 to the number of features, {len(features)}. Received: {k}.")
    if features.shape[1:] != queries.shape[1:] or len(labels) != len(features):
        raise ValueError(
            f"Features (N, F), labels (N,) and queries (M, F) must fit. Received: {features.shape}, "
            f"{labels.shape}, {queries.shape}."
        )
    features, queries = _unit_rows(features), _unit_rows(queries)
    classes = int(labels.max()) + 1
    predicted = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK] @ features.T  # (chunk, N)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        cosines = np.take_along_axis(similarity, nearest, axis=1)
        # The greatest cosine is subtracted: the same vote, no overflow.
        votes = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
        totals = np.zeros((len(similarity), classes))
        np.add.at(totals, (np.arange(len(similarity))[:, np.newaxis], labels[nearest]), votes)
        predicted[start : start + CHUNK] = totals.argmax(axis=1)
    return predicted


def knn_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries (0 to 1) whose label `knn_predict` finds."""
    return float(
        np.mean(knn_predict(features, labels, queries, k=k, temperature=temperature) == query_labels)
    )


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
