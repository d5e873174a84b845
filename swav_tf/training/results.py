"""Files with the accuracy of a classifier: per_class.csv, confusion.csv, confusion.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from swav_tf.plumbing.files import atomic_write, write_csv
from swav_tf.training.validation import Counts

MOST_LABELS = 40  # with more classes, names and numbers would be too small to read


def write_results(folder: Path, counts: Counts, class_names: tuple[str, ...], title: str) -> None:
    """Write per_class.csv, confusion.csv and confusion.png."""
    per_class: list[list[Any]] = []
    for name, images, top1, top5 in zip(class_names, counts.images, counts.right, counts.top5, strict=True):
        per_class.append([name, images, *([top1 / images, top5 / images] if images else ["", ""])])
    write_csv(folder / "per_class.csv", ["class", "images", "top1", "top5"], per_class)
    confusion = ([name, *row] for name, row in zip(class_names, counts.confusion, strict=True))
    write_csv(folder / "confusion.csv", ["true class", *class_names], confusion)
    draw_confusion(folder / "confusion.png", counts.confusion, class_names, title=title)


def draw_confusion(
    path: Path, confusion: npt.NDArray[np.int64], class_names: Sequence[str], *, title: str
) -> None:
    """Write a PNG of a confusion matrix (true class, predicted class), colored by the share of the row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(class_names)
    labeled = count <= MOST_LABELS
    side = min(max(4.5, 0.42 * count), 14) if labeled else 10
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), dpi=110, layout="constrained")
    interpolation = "nearest" if labeled else "antialiased"
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation=interpolation)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if labeled:
        rotation = 0 if max(map(len, class_names)) <= 3 else 90
        axes.set_xticks(range(count), class_names, rotation=rotation, fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the true class's images", shrink=0.8)
    with atomic_write(path) as partial:
        figure.savefig(partial)
    plt.close(figure)
