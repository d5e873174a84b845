"""Features as a map: a point per image, close to images with similar features."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image as PillowImage

from evaluate.feature_file import FeatureFile
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS: Final = {"pca": "PCA", "tsne": "t-SNE"}
LEGEND_CLASSES: Final = 20  # more colors cannot be distinguished
REDUCED: Final = 50  # dimensions that PCA leaves to t-SNE, which is slow on more
PERPLEXITY: Final = 30


@dataclass(frozen=True)
class FeatureMap:
    """Points (n, 2), their rows in the feature file (n,), and for PCA the share of variance on each axis."""

    places: np.ndarray
    rows: np.ndarray
    explained: tuple[float, float] | None = None


def map_features(file: FeatureFile, *, method: str, limit: int, seed: int = 0) -> FeatureMap:
    """Map the images to two dimensions by their features, normalized to length 1.

    More than `limit` images are sampled. `seed` decides the sample and t-SNE; `method` is a key of METHODS.
    """
    total, width = file.features.shape
    shown, least = min(total, limit), PERPLEXITY + 2 if method == "tsne" else 3
    if shown < least or width < 2:
        raise UsageError(
            f"A {METHODS[method]} map needs at least {least} images of 2 features. Received: {shown} images of {width} "
            f"features, from {file.path}."
        )
    rows = np.arange(total)
    if total > limit:
        rows = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
    features = np.array(file.features[rows], np.float32)
    if not np.isfinite(features).all():
        raise DataError(f"{file.path} must contain finite features. Some are not finite.")
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    from sklearn.decomposition import PCA

    pca = PCA(2 if method == "pca" else min(REDUCED, *features.shape), random_state=seed)
    reduced = pca.fit_transform(features)
    if method == "pca":
        return FeatureMap(reduced, rows, tuple(pca.explained_variance_ratio_.tolist()))
    from sklearn.manifold import TSNE

    return FeatureMap(TSNE(perplexity=PERPLEXITY, random_state=seed).fit_transform(reduced), rows)


def draw_map(path: Path, file: FeatureFile, drawn: FeatureMap, *, method: str) -> None:
    """Write the picture. Colors are classes, with a legend for up to LEGEND_CLASSES of them."""
    figure = _figure(file, drawn, method)
    with atomic_write(path) as partial:
        figure.savefig(partial)


def map_picture(file: FeatureFile, drawn: FeatureMap, *, method: str) -> PillowImage.Image:
    """Return the picture."""
    buffer = io.BytesIO()
    _figure(file, drawn, method).savefig(buffer, format="png")
    return PillowImage.open(buffer).convert("RGB")


def _figure(file: FeatureFile, drawn: FeatureMap, method: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 8), dpi=120, layout="constrained")
    axes = figure.subplots()
    classes = _draw_points(axes, file, drawn)
    shown, total = len(drawn.rows), len(file)
    of = f"{shown:,} of {total:,} images" if shown < total else f"{total:,} images"
    many = f", {classes} classes by color" if classes > LEGEND_CLASSES else ""
    title = f"{METHODS[method]} of {of}, {file.features.shape[1]} features{many}"
    axes.set_title(title, loc="left", fontsize=13)
    if drawn.explained:
        x, y = (f"{100 * share:.1f} % of the variance" for share in drawn.explained)
        axes.set(xlabel=f"first principal component, {x}", ylabel=f"second principal component, {y}")
    else:
        axes.set(xticks=[], yticks=[])  # directions and scale of these maps have no meaning
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_points(axes: Any, file: FeatureFile, drawn: FeatureMap) -> int:
    """Draw the points and the legend, and return the number of classes."""
    from matplotlib import colormaps

    labels = file.labels[drawn.rows]
    classes = np.unique(labels[labels >= 0])
    size = float(np.clip(20_000 / len(labels), 3, 28))
    style: dict[str, Any] = {"s": size, "alpha": 0.8, "linewidths": 0}
    unlabeled = labels < 0
    if unlabeled.any():
        axes.scatter(*drawn.places[unlabeled].T, color="0.6", label="no label", **style)
    if len(classes) > LEGEND_CLASSES:
        colors = np.searchsorted(classes, labels[~unlabeled])
        axes.scatter(*drawn.places[~unlabeled].T, c=colors, cmap="turbo", **style)
        return len(classes)
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number, label in enumerate(classes.tolist()):
        color = palette(number)
        axes.scatter(*drawn.places[labels == label].T, color=color, label=file.class_name(label), **style)
    if len(classes):
        legend = axes.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        for handle in legend.legend_handles:
            handle.set(sizes=[40], alpha=1)
    return len(classes)
