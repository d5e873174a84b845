"""Which prototype every image goes to, how the prototypes are used, and the nearest images of each."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.feature_file import class_name
from evaluate.images import ImageSet, UnreadableImages, batches, stack_views, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.names import printable

IMAGES_OF_EACH = 12


@dataclass(frozen=True)
class Clusters:
    """N images and K prototypes.

    Attributes:
        index: (N,) numbers of the images in their source.
        labels: (N,) classes, -1 for none.
        prototypes: (N,) the prototype of greatest score.
        scores: (N,) that score, the cosine of projection and prototype.
        nearest: (K, m) rows (0 to N - 1) of the images of greatest score, best first, whether or not they go
            to that prototype.
        nearest_scores: (K, m).
        class_names: by label; empty where they are not known.
    """

    index: np.ndarray
    labels: np.ndarray
    prototypes: np.ndarray
    scores: np.ndarray
    nearest: np.ndarray
    nearest_scores: np.ndarray
    class_names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of prototypes, K."""
        return len(self.nearest)

    @property
    def labelled(self) -> bool:
        """Whether every image has a class."""
        return bool((self.labels >= 0).all())

    def usage(self) -> np.ndarray:
        """(K,) images that go to each prototype."""
        return np.bincount(self.prototypes, minlength=self.count)

    def by_usage(self) -> np.ndarray:
        """(K,) prototypes, the most used first."""
        return np.argsort(-self.usage(), kind="stable")


def assign_images(
    runner: Backend,
    images: ImageSet,
    *,
    images_of_each: int = IMAGES_OF_EACH,
    batch_size: int = 128,
    threads: int = 0,
    unreadable: UnreadableImages,
    on_progress: Callable[[int], None] | None = None,
) -> Clusters:
    """Assigns all readable images to prototypes, a batch in memory at a time.

    Args:
        runner: a model with scores.
        images: what to assign.
        images_of_each: nearest images to find for each prototype, m.
        batch_size: images that the model sees at once.
        threads: that decode; 0 for one a core.
        unreadable: counts the images that are left out.
        on_progress: called with the number of images that are done.

    Raises:
        UsageError: the model has no prototypes.
        DataError: too many images are unreadable, or all.
    """
    index: list[int] = []
    labels: list[int] = []
    prototypes: list[np.ndarray] = []
    best: list[np.ndarray] = []
    nearest_scores = np.empty(0, np.float32)  # (m, K) from the first batch on
    nearest = np.empty(0, np.int64)
    views = view_images(
        images.source, range(len(images.source)), runner.input_view, threads=threads, ahead=2 * batch_size
    )
    for batch in batches(views, batch_size, unreadable):
        outputs = runner.run(stack_views(batch))
        if "scores" not in outputs:
            raise UsageError(
                f"Clusters need a model with prototypes. Received: {runner.facts.path}, which gives "
                f"{', '.join(outputs)}."
            )
        scores = outputs["scores"]
        rows = np.arange(len(index), len(index) + len(batch))
        nearest_scores = np.concatenate([nearest_scores.reshape(-1, scores.shape[1]), scores])
        nearest = np.concatenate(
            [nearest.reshape(-1, scores.shape[1]), np.broadcast_to(rows[:, np.newaxis], scores.shape)]
        )
        if len(nearest) > images_of_each:
            best_rows = np.argpartition(-nearest_scores, images_of_each - 1, axis=0)[:images_of_each]
            nearest_scores = np.take_along_axis(nearest_scores, best_rows, axis=0)
            nearest = np.take_along_axis(nearest, best_rows, axis=0)
        prototypes.append(scores.argmax(axis=1))
        best.append(scores.max(axis=1))
        index += [image.index for image in batch]
        labels += [image.label for image in batch]
        if on_progress is not None:
            on_progress(batch[-1].index + 1)
    if not index:
        raise DataError(f"At least one image must be readable. Received: {len(images.source)} that are not.")
    order = np.argsort(-nearest_scores, axis=0, kind="stable")
    return Clusters(
        index=np.array(index, np.int64),
        labels=np.array(labels, np.int64),
        prototypes=np.concatenate(prototypes),
        scores=np.concatenate(best),
        nearest=np.take_along_axis(nearest, order, axis=0).T,
        nearest_scores=np.take_along_axis(nearest_scores, order, axis=0).T,
        class_names=tuple(map(printable, images.source.class_names)),
    )


def summary(clusters: Clusters) -> dict[str, Any]:
    """The figures of the whole assignment.

    `prototypes_used` have at least one image. `effective_prototypes` is exp(entropy of the usage): K when all
    are used alike, 1 when one takes everything. `purity`, where there are labels, is the share of images whose
    class is the most frequent one at their prototype.
    """
    usage = clusters.usage()
    shares = usage[usage > 0] / usage.sum()
    figures: dict[str, Any] = {
        "images": len(clusters.index),
        "prototypes": clusters.count,
        "prototypes_used": int((usage > 0).sum()),
        "effective_prototypes": round(math.exp(-float((shares * np.log(shares)).sum())), 2),
        "largest_share": float(shares.max()),
        "mean_score": float(clusters.scores.mean()),
    }
    if clusters.labelled:
        figures["purity"] = float(_class_counts(clusters).max(axis=1).sum() / usage.sum())
    return figures


def usage_table(clusters: Clusters) -> list[dict[str, Any]]:
    """One row a prototype, the most used first.

    `mean_score` is over its images (None without any); `top_class` and its share where there are labels.
    """
    usage = clusters.usage()
    totals = np.bincount(clusters.prototypes, clusters.scores, minlength=clusters.count)
    counts = _class_counts(clusters) if clusters.labelled else None
    table = []
    for prototype in clusters.by_usage().tolist():
        images = int(usage[prototype])
        row: dict[str, Any] = {
            "prototype": prototype,
            "images": images,
            "share": images / len(clusters.index),
            "mean_score": float(totals[prototype]) / images if images else None,
        }
        if counts is not None:
            top = int(counts[prototype].argmax())
            row["top_class"] = class_name(top, clusters.class_names) if images else None
            row["top_class_share"] = float(counts[prototype, top]) / images if images else None
        table.append(row)
    return table


def write_tables(clusters: Clusters, images: ImageSet, folder: Path) -> None:
    """usage.csv, and assignments.csv with a row an image."""
    table = usage_table(clusters)
    with (
        atomic_write(folder / "usage.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with (
        atomic_write(folder / "assignments.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        lines = csv.writer(file)
        lines.writerow(("name", "label", "class", "prototype", "score"))
        columns = (clusters.index, clusters.labels, clusters.prototypes, clusters.scores)
        for index, label, prototype, score in zip(*(c.tolist() for c in columns), strict=True):
            name = printable(images.source.image_name(index))
            lines.writerow((name, label, class_name(label, clusters.class_names), prototype, f"{score:.6f}"))


def shown_prototypes(clusters: Clusters, limit: int) -> Sequence[int]:
    """The `limit` most used prototypes that have an image."""
    usage = clusters.usage()
    return [p for p in clusters.by_usage().tolist() if usage[p]][:limit]


def _class_counts(clusters: Clusters) -> np.ndarray:
    """(K, classes) images of each class at each prototype."""
    classes = int(clusters.labels.max()) + 1
    cells = clusters.prototypes * classes + clusters.labels
    return np.bincount(cells, minlength=clusters.count * classes).reshape(clusters.count, classes)
