"""Draw the demo: the loss with ln K, the accuracies, and images of the prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swav_tf.plumbing.files import atomic_write

ROWS, COLUMNS, IMAGES_SHOWN = 6, 4, 9


def draw_demo(
    path: Path,
    *,
    losses: Sequence[tuple[float, float]],
    ln_k: float,
    knn: Sequence[tuple[float, float]],
    accuracies: Mapping[str, tuple[float, float]],
    scores: np.ndarray,
    images: np.ndarray,
) -> None:
    """Write a PNG.

    Args:
        path: of the picture.
        losses: (epochs, loss) by step.
        ln_k: the loss of an untrained model.
        knn: (epochs, k-NN accuracy) during training.
        accuracies: (k-NN, linear) accuracy, 0 to 1, by kind of features.
        scores: (n, K) cosines of images and prototypes.
        images: uint8 (n, size, size, 3).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 7.9), dpi=110, layout="constrained")
    figure.suptitle("SwAV on handwritten digits, without labels", fontsize=15, fontweight="bold")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    top, bottom = halves
    curve, bars = top.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_curve(curve, losses, ln_k, knn)
    _draw_accuracies(bars, accuracies)
    bottom.suptitle(
        f"The {ROWS * COLUMNS} most used prototypes, each with the {IMAGES_SHOWN} images nearest to it",
        fontsize=12,
    )
    _draw_prototypes(bottom, scores, images)
    with atomic_write(path) as partial:
        figure.savefig(partial)
    plt.close(figure)


def _draw_curve(
    axes: Any, losses: Sequence[tuple[float, float]], ln_k: float, knn: Sequence[tuple[float, float]]
) -> None:
    epochs, values = np.array(losses).T
    axes.plot(epochs, values, color="tab:blue", linewidth=1.2, label="loss")
    axes.axhline(ln_k, color="gray", linestyle="--", linewidth=1)
    axes.annotate(
        "ln K: nothing learned", (epochs[-1], ln_k), ha="right", va="bottom", color="gray", fontsize=9
    )
    axes.set(xlabel="epochs", ylabel="swapped-prediction loss", title="Learning")
    axes.set_ylim(bottom=0)
    axes.spines[["top"]].set_visible(False)
    if knn:
        right = axes.twinx()
        epochs, values = np.array(knn).T
        right.plot(epochs, 100 * values, color="tab:orange", marker="o", markersize=4, label="20-NN accuracy")
        right.set(ylabel="20-NN accuracy, %", ylim=(40, 102))
        right.spines[["top"]].set_visible(False)
        handles = axes.get_lines()[:1] + right.get_lines()
        axes.legend(handles, [str(line.get_label()) for line in handles], loc="lower left", frameon=False)


def _draw_accuracies(axes: Any, accuracies: Mapping[str, tuple[float, float]]) -> None:
    places = np.arange(len(accuracies))
    for shift, column, name, color in ((-0.2, 0, "20-NN", "tab:orange"), (0.2, 1, "linear", "tab:green")):
        values = [100 * pair[column] for pair in accuracies.values()]
        drawn = axes.bar(places + shift, values, width=0.38, label=name, color=color)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_xticks(places, list(accuracies))
    axes.set(
        ylim=(0, 118), ylabel="accuracy on the test images, %", title="Test images, by the training images"
    )
    axes.set_yticks(range(0, 101, 20))
    axes.legend(loc="upper left", frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_prototypes(figure: Any, scores: np.ndarray, images: np.ndarray) -> None:
    # The most used prototypes, each as a strip of its nearest images.
    usage = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    shown = np.argsort(-usage, kind="stable")[: ROWS * COLUMNS]
    for axes, prototype in zip(figure.subplots(ROWS, COLUMNS).flat, shown, strict=False):
        nearest = np.argsort(-scores[:, prototype])[:IMAGES_SHOWN]
        axes.imshow(np.concatenate(images[nearest], axis=1))
        axes.set_title(f"{usage[prototype]} images", fontsize=8, pad=2)
        axes.axis("off")
