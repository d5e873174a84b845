"""k-NN accuracy of one feature file by another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evaluate.feature_file import FeatureFile
from evaluate.search import SearchIndex
from swav_tf.data.labels import renumbered
from swav_tf.data.subset import first_of
from swav_tf.knn import vote
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log

QUERIES: Final = 1024  # queries whose votes for all classes are in memory at once


def meaning_among(counts: Iterable[int]) -> str:
    """Return a sentence that defines the k-NN accuracy of `verify` and `benchmark`, by the numbers of images."""
    numbers = " or ".join(f"{count:,}" for count in sorted(set(counts)))
    return (
        f"k-NN: each of {numbers} labeled images is classified by its 20 nearest among the others. It is lower than "
        "the accuracy of `swav-tf knn` and of training, where all training images vote; look at the change."
    )


@dataclass(frozen=True)
class KnnAccuracy:
    """Shares of queries, 0 to 1."""

    top1: float  # whose class has the most votes
    top5: float  # whose class is among the five with the most


def knn_accuracies(
    known: FeatureFile,
    asked: FeatureFile,
    *,
    neighbors: Sequence[int],
    temperature: float = 0.07,
    index: SearchIndex | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[int, KnnAccuracy]:
    """Return the k-NN accuracy of `asked` for several k, by one search in `known` for the largest.

    The search is exact unless an index of `known` is given. A neighbor's vote is exp(cosine / temperature);
    `on_progress` is called with the share that is done, 0 to 1.
    """
    _check(known, asked, neighbors)
    truths = _truths(known, asked)
    found = (index or known).neighbors(asked.features, k=max(neighbors), on_progress=on_progress)
    classes = 1 + int(max(known.labels.max(), truths.max()))
    ranks = {k: np.empty(len(asked), np.int64) for k in neighbors}
    for start in range(0, len(asked), QUERIES):
        here = slice(start, start + QUERIES)
        near, truth = known.labels[found.indices[here]], truths[here]
        for k in neighbors:
            votes = vote(found.cosines[here, :k], near[:, :k], classes=classes, temperature=temperature)
            ranks[k][here] = _ranks(votes, truth)
    return {k: KnnAccuracy(float((r < 1).mean()), float((r < 5).mean())) for k, r in ranks.items()}


def _ranks(votes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the rank of the true class by votes, from 0; ties go to the first class, and no vote is last."""
    own = np.take_along_axis(votes, truth[:, np.newaxis], axis=1)
    classes = np.arange(votes.shape[1])
    ahead = (votes > own) | ((votes == own) & (classes < truth[:, np.newaxis]))
    ranks: np.ndarray = np.where(own[:, 0] > 0, ahead.sum(axis=1), votes.shape[1] + 5)
    return ranks


def check_same_model(
    one: Mapping[str, Any], other: Mapping[str, Any], one_name: str, other_name: str
) -> None:
    """Refuse to compare features of different models or views; facts that a file lacks are not compared."""
    weights = [(facts.get("model") or {}).get("weights_sha256", "") for facts in (one, other)]
    if all(weights) and weights[0] != weights[1]:
        raise UsageError(
            "Features can only be compared if they come from the same model. Received: "
            f"{one_name} of weights {weights[0][:12]}..., {other_name} of weights {weights[1][:12]}..., from another "
            "model or training step. Compute one of them again with `swav-tf features`."
        )
    contracts = [(facts.get("model") or {}).get("contract") for facts in (one, other)]
    if all(weights) and contracts[0] != contracts[1]:
        raise UsageError(
            "Features can only be compared if they were computed with the same preprocessing and output. Received: "
            f"{one_name} with {contracts[0]}, {other_name} with {contracts[1]}. Compute one of them again with "
            "`swav-tf features`."
        )
    views = one.get("view"), other.get("view")
    if None not in views and views[0] != views[1]:
        raise UsageError(
            "Features can only be compared if they were computed with the same view. Received: "
            f"{one_name} with {views[0]}, {other_name} with {views[1]}. Compute one of them again with "
            "`swav-tf features`."
        )


def _truths(known: FeatureFile, asked: FeatureFile) -> np.ndarray:
    """Return the labels of `asked` in the numbering of `known`; report classes without votes."""
    truths = asked.labels
    if known.class_names or asked.class_names:
        truths = renumbered(asked.labels, asked.class_names, known.class_names)
        if (truths < 0).any():
            extra = sorted({asked.class_name(label) for label in asked.labels[truths < 0].tolist()})
            raise UsageError(
                f"Every class in {asked.path} must also exist in {known.path}. "
                f"Received: {len(extra):,} classes that do not: {first_of(extra)}."
            )
    lost = ~np.isin(truths, known.labels)
    if lost.all():
        raise DataError(
            f"Both files must have the same classes. Received: {known.path} and {asked.path} without a common label."
        )
    if lost.any():
        log.warning(
            f"{lost.sum():,} of {len(asked):,} images in {asked.path} have classes without an image in {known.path}: "
            "they count as wrong."
        )
    return truths


def _same_images(one: FeatureFile, other: FeatureFile) -> bool:
    """Return whether both files are of the same images, as far as they record it."""
    sources: list[dict[str, Any]] = [file.facts.get("source") or {} for file in (one, other)]
    names, splits, contents = (
        [source.get(key) for source in sources] for key in ("names_sha256", "split", "contents_sha256")
    )
    if None in names or names[0] != names[1] or splits[0] != splits[1]:
        return False
    if None not in contents:  # parts have contents of their own
        return contents[0] == contents[1]
    places = [os.path.realpath(source.get("path") or "") for source in sources]
    return places[0] == places[1]


def _check(known: FeatureFile, asked: FeatureFile, neighbors: Sequence[int]) -> None:
    widths = [file.features.shape[1] for file in (known, asked)]
    if widths[0] != widths[1]:
        raise UsageError(
            f"Both files must have features of the same width. Received: {known.path} with {widths[0]}, "
            f"{asked.path} with {widths[1]}, from different models."
        )
    check_same_model(known.facts, asked.facts, str(known.path), str(asked.path))
    for file in (known, asked):
        unlabeled = int((file.labels < 0).sum())
        if unlabeled:
            raise DataError(
                f"k-NN accuracy needs labels. Received: {file.path}, where {unlabeled} of "
                f"{len(file)} images have none. Make it from class folders (--kind class_folders)."
            )
    if known.path.resolve() == asked.path.resolve() or _same_images(known, asked):
        raise UsageError(
            "The images that vote must differ from the images that are classified. Received: "
            f"{known.path} and {asked.path} of the same images, so each image would find itself. Pass features of "
            "other images as TEST."
        )
    if wrong := [k for k in neighbors if not 1 <= k <= len(known)]:
        most = f"the number of images that vote, {len(known)} in {known.path}"
        raise UsageError(f"k must be from 1 to {most}. Received: {wrong[0]}.")
