"""Features as a map: a point an image, near where features are alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.feature_file import FeatureFile
from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from swav_tf.plumbing.files import atomic_write

METHODS: Final = ("pca", "tsne", "umap")
LEGEND_CLASSES: Final = 20  # more colours cannot be told apart
TSNE_DIMENSIONS: Final = 50  # that PCA leaves to t-SNE and UMAP, as is usual: they are slow on more
PERPLEXITY: Final = 30


@dataclass(frozen=True)
class FeatureMap:
    """Places of some images of a feature file.

    Attributes:
        places: (n, 2).
        rows: (n,) their rows in the file.
        explained: share of the variance that each axis has, for PCA.
    """

    places: np.ndarray
    rows: np.ndarray
    explained: tuple[float, float] | None


def map_features(file: FeatureFile, *, method: str, limit: int, seed: int = 0) -> FeatureMap:
    """Places the images in two dimensions by the direction of their features, whose lengths become 1.

    Args:
        file: the features.
        method: one of METHODS.
        limit: so many images at most, drawn with `seed`.
        seed: of the draw, and of t-SNE and UMAP.

    Raises:
        UsageError: too few images for the method.
        DataError: features are not finite.
        SwavError: UMAP is not installed.
    """
    total = len(file.rows.labels)
    least = PERPLEXITY + 2 if method == "tsne" else 3
    if min(total, limit) < least or file.rows.features.shape[1] < 2:
        raise UsageError(
            f"A {method} map needs at least {least} images of 2 features. Received: "
            f"{min(total, limit)} images of {file.rows.features.shape[1]} features, from {file.path}."
        )
    rows = np.arange(total)
    if total > limit:
        rows = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
    features = np.array(file.rows.features[rows], np.float32)
    if not np.isfinite(features).all():
        raise DataError(f"{file.path}: features must be finite, and some are not.")
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    from sklearn.decomposition import PCA

    dimensions = 2 if method == "pca" else min(TSNE_DIMENSIONS, *features.shape)
    pca = PCA(dimensions, random_state=seed)
    reduced = pca.fit_transform(features)
    if method == "pca":
        first, second = pca.explained_variance_ratio_.tolist()
        return FeatureMap(reduced, rows, (first, second))
    if method == "tsne":
        from sklearn.manifold import TSNE

        return FeatureMap(TSNE(perplexity=PERPLEXITY, random_state=seed).fit_transform(reduced), rows, None)
    try:
        import umap
    except ImportError as error:
        raise SwavError(
            "--method umap needs the package umap-learn, which is not installed. Run: pip install umap-learn, "
            "or take --method tsne."
        ) from error
    return FeatureMap(umap.UMAP(random_state=seed).fit_transform(reduced), rows, None)


def draw_map(path: Path, file: FeatureFile, drawn: FeatureMap, *, method: str) -> None:
    """Writes the picture: colours are classes, with a legend for up to LEGEND_CLASSES of them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = file.rows.labels[drawn.rows]
    classes = np.unique(labels[labels >= 0])
    figure, axes = plt.subplots(figsize=(10.5, 8), dpi=120, layout="constrained")
    size = float(np.clip(20_000 / len(labels), 3, 28))
    style: dict[str, Any] = {"s": size, "alpha": 0.8, "linewidths": 0}
    unlabelled = labels < 0
    if unlabelled.any():
        axes.scatter(*drawn.places[unlabelled].T, color="0.6", label="no label", **style)
    if len(classes) <= LEGEND_CLASSES:
        colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
        for number, label in enumerate(classes.tolist()):
            here = labels == label
            axes.scatter(*drawn.places[here].T, color=colours(number), label=file.class_name(label), **style)
        if len(classes):
            legend = axes.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
            handles: list[Any] = legend.legend_handles
            for handle in handles:
                handle.set(sizes=[40], alpha=1)
    else:
        place = np.searchsorted(classes, labels[~unlabelled])
        x, y = drawn.places[~unlabelled].T
        axes.scatter(x, y, c=place, cmap="turbo", **style)
    name = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[method]
    shown, total = len(drawn.rows), len(file.rows.labels)
    of = f"{shown:,} of {total:,} images" if shown < total else f"{total:,} images"
    many = f", {len(classes)} classes by colour" if len(classes) > LEGEND_CLASSES else ""
    axes.set_title(f"{name} of {of}, {file.rows.features.shape[1]} features{many}", loc="left", fontsize=13)
    if drawn.explained:
        axes.set_xlabel(f"first principal component, {100 * drawn.explained[0]:.1f} % of the variance")
        axes.set_ylabel(f"second principal component, {100 * drawn.explained[1]:.1f} % of the variance")
    else:
        # Neither direction nor scale of these maps means anything.
        axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial)
    plt.close(figure)
