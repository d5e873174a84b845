"""Weighted k-nearest-neighbor classification by cosine (arXiv 1805.01978, section 3.4). No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

FEATURE_ROWS = 2_048  # features that are compared at once, as float32 of length 1
QUERY_ROWS = 1_024  # queries that they are compared with at once: 1,024 x 2,048 cosines are 8 MiB
SLAB_ROWS = 65_536  # queries in memory during one pass over the features: 512 MiB of 2048 features


@dataclass(frozen=True)
class Neighbors:
    """The k nearest features of each query, nearest first."""

    cosines: np.ndarray  # (M, k) float32
    indices: np.ndarray  # (M, k) int64, rows of the features

    def without(self, rows: np.ndarray) -> Neighbors:
        """Return k - 1 neighbors of each query, without the row (M,) that it is itself.

        Where others of equal cosine have taken the row's place, the last of them is left out.
        """
        others = np.argsort(self.indices == rows[:, np.newaxis], axis=1, kind="stable")[:, :-1]
        return Neighbors(
            np.take_along_axis(self.cosines, others, axis=1), np.take_along_axis(self.indices, others, axis=1)
        )


def find_neighbors(
    features: np.ndarray,
    queries: np.ndarray,
    *,
    k: int,
    normalized: bool = False,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Neighbors:
    """Find the k features of highest cosine with each query: exact, in blocks of both.

    Both arrays may be memory-mapped: only the blocks above and k neighbors of a slab of queries are in memory. The
    features are read once for each slab. Of features with equal cosines at the k-th place any may be returned.

    Args:
        features: (N, F), any scale; rows are normalized here.
        queries: (M, F), likewise.
        k: neighbors, 1 <= k <= N.
        normalized: whether the features are from `unit_rows`, for many searches of few queries.
        on_progress: called with the share that is done, 0 to 1.

    Raises:
        ValueError: k or the shapes do not match, or a value is not finite.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"`k` must be from 1 to the number of features, {len(features)}. Received: {k}.")
    if features.ndim != 2 or features.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"Features (N, F) and queries (M, F) must match. Received: {features.shape} and {queries.shape}."
        )
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    indices = np.full((len(queries), k), -1, np.int64)
    done, total = 0, len(queries) * len(features)
    for slab in _blocks(len(queries), SLAB_ROWS):
        asked = unit_rows(queries[slab])
        for block in _blocks(len(features), FEATURE_ROWS):
            known = features[block] if normalized else unit_rows(features[block])
            for part in _blocks(len(asked), QUERY_ROWS):
                here = slice(slab.start + part.start, slab.start + part.stop)
                _merge(cosines[here], indices[here], asked[part] @ known.T, block.start)
            done += len(asked) * len(known)
            on_progress(done / total)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return Neighbors(np.take_along_axis(cosines, order, axis=1), np.take_along_axis(indices, order, axis=1))


def vote(cosines: np.ndarray, labels: np.ndarray, *, classes: int, temperature: float) -> np.ndarray:
    """Return the votes for each class, (M, classes): every neighbor's label counts exp(cosine / temperature).

    They are scaled so that the vote of each query's nearest neighbor is 1. Cosines and labels of the neighbors are
    (M, k); large temperatures make all votes equal.
    """
    # Subtracting the highest cosine changes no ratio of votes and prevents overflow.
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    cells = np.arange(len(labels))[:, np.newaxis] * classes + labels
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return votes.reshape(len(labels), classes)


def knn_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the share of queries (0 to 1) whose label an exact k-NN vote predicts; see `vote`.

    Features are (N, F), of any scale, queries (M, F); labels are integers >= 0.

    Raises:
        ValueError: k or the shapes do not match, or a feature is not finite.
    """
    found = find_neighbors(features, queries, k=k)
    classes, correct = int(labels.max()) + 1, 0
    for part in _blocks(len(queries), QUERY_ROWS):
        near = labels[found.indices[part]]
        votes = vote(found.cosines[part], near, classes=classes, temperature=temperature)
        correct += int(np.count_nonzero(votes.argmax(axis=1) == query_labels[part]))
    return correct / len(queries)


def _merge(cosines: np.ndarray, indices: np.ndarray, similarity: np.ndarray, first: int) -> None:
    """Merge a block's similarities (q, n) into the best so far (q, k), in place; the k-th best is last.

    After the first blocks few similarities exceed the k-th best, so one comparison of each is most of the work. A
    partition of each row is much slower.
    """
    k = cosines.shape[1]
    rows, columns = np.divmod(np.flatnonzero(similarity > cosines[:, -1:]), similarity.shape[1])
    if not len(rows):
        return
    counts = np.bincount(rows, minlength=len(similarity))
    # Each row's winners to the left of a table as wide as the longest row.
    width = int(counts.max())
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    new_cosines = np.full((len(similarity), width), -np.inf, np.float32)
    new_indices = np.full((len(similarity), width), -1, np.int64)
    new_cosines[rows, place] = similarity[rows, columns]
    new_indices[rows, place] = first + columns
    all_cosines = np.concatenate([cosines, new_cosines], axis=1)
    all_indices = np.concatenate([indices, new_indices], axis=1)
    best = np.argpartition(-all_cosines, k - 1, axis=1)[:, :k]
    cosines[:] = np.take_along_axis(all_cosines, best, axis=1)
    indices[:] = np.take_along_axis(all_indices, best, axis=1)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return a float32 copy of rows (N, F) at length 1; rows of zeros stay so."""
    unit = np.array(rows, np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, np.newaxis]  # np.linalg.norm would square a copy
    if not np.isfinite(norms).all():
        raise ValueError(
            f"Features must be finite. Received: {int((~np.isfinite(norms)).sum())} rows that are not."
        )
    unit /= np.maximum(norms, 1e-12)
    return unit


BASELINES: Final = {"knn_top1_initial": "the initial weights", "knn_top1_pixels": "raw pixels"}

VIEWS: Final = ("view_retrieval", "view_retrieval_initial", "view_images")


def baselines_of(found: Mapping[str, Any]) -> str:
    """Return the baselines that were measured."""
    known = {what: found[key] for key, what in BASELINES.items() if found.get(key) is not None}
    return ", ".join(f"{what} {100 * top1:.1f} %" for what, top1 in known.items())


def view_comparison(found: Mapping[str, Any]) -> str:
    """Return the share of views that are closest to the other view of their image, next to the initial weights."""
    if found.get("view_retrieval") is None:
        return "views: the features are not finite"
    initial = found.get("view_retrieval_initial")
    before = f" (initial weights: {100 * initial:.1f} %)" if initial is not None else ""
    share, images = f"{100 * found['view_retrieval']:.1f} %", found["view_images"]
    return (
        f"{share} of views are closest to the other view of the same image, among {images:,} images{before}"
    )


def comparison(found: Mapping[str, Any]) -> str:
    """Return the k-NN accuracy next to its baselines."""
    if found["knn_top1"] is None:
        return "k-NN: the features are not finite"
    baselines = baselines_of(found)
    return f"k-NN {100 * found['knn_top1']:.1f} %" + (f" ({baselines})" if baselines else "")
