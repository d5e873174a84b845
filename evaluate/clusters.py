"""The assignment of images to prototypes: tables, and a page of the nearest images of each prototype."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.backend import Backend, ModelIdentity
from evaluate.feature_file import class_name
from evaluate.images import SIDE, ImageSet, thumbnail
from evaluate.page import write_page
from swav_tf.data.bad_images import BadImages
from swav_tf.data.views import stack_views, view_batches
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, write_csv
from swav_tf.plumbing.names import counted, printable
from swav_tf.recipe.data import EvaluationView


@dataclass(frozen=True)
class Clusters:
    """N images and K prototypes."""

    index: np.ndarray  # (N,) numbers of the images in their source
    labels: np.ndarray  # (N,) classes, -1 for none
    prototypes: np.ndarray  # (N,) the prototype of highest score
    scores: np.ndarray  # (N,) that score, the cosine of projection and prototype
    nearest: np.ndarray  # (K, m) rows of the images with the highest score, best first, of any prototype
    nearest_scores: np.ndarray  # (K, m)
    class_names: tuple[str, ...]  # by label; empty if unknown
    unreadable: int = 0  # number of skipped images

    @property
    def count(self) -> int:
        """Number of prototypes, K."""
        return len(self.nearest)

    @property
    def labeled(self) -> bool:
        """Whether every image has a class."""
        return bool((self.labels >= 0).all())

    def usage(self) -> np.ndarray:
        """Return the number of images of each prototype, (K,)."""
        return np.bincount(self.prototypes, minlength=self.count)

    def class_counts(self) -> np.ndarray:
        """Return the images of each class at each prototype, (K, classes)."""
        classes = int(self.labels.max()) + 1
        cells = self.prototypes * classes + self.labels
        return np.bincount(cells, minlength=self.count * classes).reshape(self.count, classes)


def assign_images(
    model: Backend,
    images: ImageSet,
    *,
    unreadable_list: Path,
    images_of_each: int = 12,
    batch_size: int = 128,
    threads: int = 0,
    max_bad_share: float = 0.01,
    on_progress: Callable[[int], None] | None = None,
) -> Clusters:
    """Assign all readable images to prototypes, with one batch in memory at a time.

    Unreadable images are skipped and listed in the CSV file `unreadable_list`, up to a share of `max_bad_share`.
    `on_progress` is called with the number of images that are done.
    """
    if "scores" not in model.outputs:
        raise UsageError(
            f"Clusters need a model with prototypes. Received: {model.facts.path} with the outputs "
            f"{', '.join(model.outputs)}."
        )
    total, nearest, parts = len(images.source), _Nearest(images_of_each), []
    unreadable = BadImages(images=total, max_share=max_bad_share, setting="--max-bad-share")
    batches = view_batches(
        images.source, range(total), model.input_view, batch_size, threads=threads, unreadable=unreadable.bad
    )
    try:
        for batch in batches:
            scores = model.run(stack_views(batch))["scores"]
            nearest.add(scores)
            numbers, classes = [image.index for image in batch], [image.label for image in batch]
            parts.append((numbers, classes, scores.argmax(axis=1), scores.max(axis=1)))
            if on_progress is not None:
                on_progress(batch[-1].index + 1)
    finally:
        unreadable.write_list(unreadable_list)
    if not parts:
        raise DataError(f"At least one image must be readable. Received: {total} unreadable images.")
    names = tuple(map(printable, images.source.class_names))
    index, labels, prototypes, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Clusters(index, labels, prototypes, scores, *nearest.sorted(), names, unreadable.count)


class _Nearest:
    """The rows of the highest scores of each prototype so far."""

    def __init__(self, count: int) -> None:
        self.count, self.total = count, 0
        self.best: tuple[np.ndarray, np.ndarray] | None = None  # rows and scores, (m, K) each

    def add(self, scores: np.ndarray) -> None:
        """Add the scores (n, K) of the next n rows."""
        rows = np.broadcast_to(self.total + np.arange(len(scores))[:, np.newaxis], scores.shape)
        self.total += len(scores)
        if self.best is not None:
            rows, scores = np.concatenate([self.best[0], rows]), np.concatenate([self.best[1], scores])
        if len(rows) > self.count:
            best = np.argpartition(-scores, self.count - 1, axis=0)[: self.count]
            rows, scores = np.take_along_axis(rows, best, axis=0), np.take_along_axis(scores, best, axis=0)
        self.best = rows, scores

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores, (K, m) each, best first."""
        assert self.best is not None
        rows, scores = self.best
        order = np.argsort(-scores, axis=0, kind="stable")
        return np.take_along_axis(rows, order, axis=0).T, np.take_along_axis(scores, order, axis=0).T


def summary(clusters: Clusters) -> dict[str, Any]:
    """Return the figures of the complete assignment.

    `prototypes_used` have at least one image. `effective_prototypes` is exp(entropy of the usage): K if all are used
    equally, 1 if one gets every image. `purity`, if all images have labels, is the share of images whose class is the
    most frequent one at their prototype.
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
    if clusters.labeled:
        figures["purity"] = float(clusters.class_counts().max(axis=1).sum() / usage.sum())
    return figures


def usage_table(clusters: Clusters) -> list[dict[str, Any]]:
    """Return one row per prototype, the most used first.

    `mean_score` covers its images (None without any); `top_class` and its share exist if all images have labels.
    """
    usage = clusters.usage()
    totals = np.bincount(clusters.prototypes, clusters.scores, minlength=clusters.count)
    counts = clusters.class_counts() if clusters.labeled else None
    table = []
    for prototype in np.argsort(-usage, kind="stable").tolist():
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


def write_tables(folder: Path, clusters: Clusters, images: ImageSet, model: ModelIdentity) -> dict[str, Any]:
    """Write usage.csv, assignments.csv and clusters.json, and return the content of the last."""
    table = usage_table(clusters)
    write_csv(folder / "usage.csv", table[0].keys(), (row.values() for row in table))
    names = (printable(images.source.image_name(index)) for index in clusters.index.tolist())
    labels = clusters.labels.tolist()
    classes = (class_name(label, clusters.class_names) for label in labels)
    scores = (f"{score:.6f}" for score in clusters.scores.tolist())
    rows = zip(names, labels, classes, clusters.prototypes.tolist(), scores, strict=True)
    write_csv(folder / "assignments.csv", ("name", "label", "class", "prototype", "score"), rows)
    report = summary(clusters) | {"unreadable": clusters.unreadable, "model": model.as_dict(), "usage": table}
    with atomic_write(folder / "clusters.json") as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


# === The page ===


def write_gallery(
    folder: Path, clusters: Clusters, images: ImageSet, model: Backend, *, prototypes: int
) -> None:
    """Write index.html with the `prototypes` most used prototypes."""
    cards = prototype_cards(clusters, images, model.input_view, prototypes=prototypes)
    facts, settings, figures = model.facts, images.settings, summary(clusters)
    place = settings.path or f"{settings.kind}, split {settings.split}"
    write_page(
        folder / "index.html",
        "clusters.html.jinja",
        title="Prototypes and their images",
        subtitle=f"Model {facts.path} ({facts.recipe}, step {facts.step:,}), images {place}",
        figures=figures,
        tiles=_in_words(figures),
        cards=cards,
        usage=sorted(clusters.usage().tolist(), reverse=True),
    )


def _in_words(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures as text, each with its meaning."""
    tiles = [
        (f"{figures['images']:,}", "images"),
        (f"{figures['prototypes_used']:,} of {figures['prototypes']:,}", "prototypes used"),
        (f"{figures['effective_prototypes']:g}", "effective prototypes"),
        (f"{100 * figures['largest_share']:.1f} %", "of the images are assigned to the most used prototype"),
        (f"{figures['mean_score']:.3f}", "mean score"),
    ]
    return tiles + ([(f"{100 * figures['purity']:.1f} %", "purity")] if "purity" in figures else [])


def prototype_cards(
    clusters: Clusters, images: ImageSet, view: EvaluationView, *, prototypes: int
) -> list[dict[str, Any]]:
    """Return text and pictures of the `prototypes` most used prototypes, for the pages."""
    used = [row for row in usage_table(clusters)[:prototypes] if row["images"]]
    return [_card(row, used[0]["images"], clusters, images, view) for row in used]


def _card(
    row: dict[str, Any], most: int, clusters: Clusters, images: ImageSet, view: EvaluationView
) -> dict[str, Any]:
    near, scores = clusters.nearest[row["prototype"]], clusters.nearest_scores[row["prototype"]]
    pictures = []
    for index, label, score in zip(clusters.index[near], clusters.labels[near], scores, strict=True):
        name, known = printable(images.source.image_name(int(index))), class_name(label, clusters.class_names)
        title = f"{name}{f', class {known}' if known else ''}, score {score:.3f}"
        pictures.append((thumbnail(images.source, int(index), view, SIDE), f"{score:.2f}", title))
    lines = [
        f"Prototype {row['prototype']}",
        f"{counted(row['images'], 'image')}, {100 * row['share']:.1f} %",
        f"mean score {row['mean_score']:.3f}",
    ]
    if row.get("top_class") is not None:
        lines.append(f"{100 * row['top_class_share']:.0f} % are {row['top_class']}")
    return {"lines": lines, "share": row["images"] / most, "pictures": pictures}
