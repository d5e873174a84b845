"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from swav_tf.whole_file import whole_file

NAMED_CLASSES = 40  # with more of them names and numbers would be specks


def draw_confusion(
    path: Path, confusion: npt.NDArray[np.int64], class_names: Sequence[str], *, title: str
) -> None:
    """Writes a PNG: rows are true classes, columns predicted ones, colour the share of the row.

    Args:
        path: of the picture.
        confusion: images by (true class, predicted class), (C, C).
        class_names: of the C classes.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(class_names)
    named = count <= NAMED_CLASSES
    side = min(max(4.5, 0.42 * count), 14) if named else 10
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), dpi=110, layout="constrained")
    image = axes.imshow(
        shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if named else "antialiased"
    )
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if named:
        rotation = 0 if max(map(len, class_names)) <= 3 else 90
        axes.set_xticks(range(count), class_names, rotation=rotation, fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=7
            )
    figure.colorbar(image, ax=axes, label="share of the true class's images", shrink=0.8)
    with whole_file(path) as partial:
        figure.savefig(partial)
    plt.close(figure)
