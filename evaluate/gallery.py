"""Prototypes with their nearest images, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from PIL import Image as PillowImage

from evaluate.backends.backend import Backend
from evaluate.clusters import Clusters, summary, usage_table
from evaluate.feature_file import class_name
from evaluate.images import ImageSet
from evaluate.page import write_page
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.image_source import ImageSource
from swav_tf.data.pictures import scaled
from swav_tf.data.sources import read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.data import EvaluationView

SIDE: Final = 96  # of a thumbnail, pixels


def thumbnail(source: ImageSource, index: int, view: EvaluationView, side: int) -> PillowImage.Image:
    """Return the evaluation view of an image as a square of `side` pixels; raise DataError if it cannot be read."""
    try:
        return scaled(evaluation_view(read_image(source, index), view), side)
    except (UndecodableImage, OSError) as error:
        raise DataError(f"{source.image_name(index)} cannot be read: {error}") from error


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
        (f"{100 * figures['largest_share']:.1f} %", "of the images at the most used prototype"),
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
        f"{row['images']:,} images, {100 * row['share']:.1f} %",
        f"mean score {row['mean_score']:.3f}",
    ]
    if row.get("top_class") is not None:
        lines.append(f"{100 * row['top_class_share']:.0f} % are {row['top_class']}")
    return {"lines": lines, "share": row["images"] / most, "pictures": pictures}
