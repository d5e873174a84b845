"""Prototypes with their nearest images, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from evaluate.backends.backend import Backend
from evaluate.clusters import Clusters, summary, usage_table
from evaluate.feature_file import class_name
from evaluate.images import ImageSet
from evaluate.page import write_page
from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.pictures import shortened
from swav_tf.data.sources import ImageSource, read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.data import EvaluationView

SIDE: Final = 96  # of a thumbnail, pixels
BACKGROUND: Final = (250, 250, 248)
INK: Final = (40, 40, 44)
FAINT: Final = (125, 125, 130)
RULE: Final = (222, 222, 218)
_GAP: Final = 24
_TEXT: Final = 190  # width of the column of text
_LINE: Final = 17  # height of a line of text


def thumbnail(source: ImageSource, index: int, view: EvaluationView, side: int) -> PillowImage.Image:
    """Return the evaluation view of an image as a square of `side` pixels; DataError if it can no longer be read."""
    try:
        return scaled(evaluation_view(read_image(source, index), view), side)
    except (UndecodableImage, OSError) as error:
        raise DataError(f"{source.image_name(index)} cannot be read: {error}") from error


def scaled(image: Image, side: int) -> PillowImage.Image:
    """Return a square image at another size; enlarged pixels stay sharp."""
    method = PillowImage.Resampling.NEAREST if len(image) < side else PillowImage.Resampling.LANCZOS
    return PillowImage.fromarray(image).resize((side, side), method)


@dataclass(frozen=True)
class SheetRow:
    """A row of a picture: lines of text on the left, then square images, each with lines below it."""

    lines: Sequence[str]
    pictures: Sequence[tuple[PillowImage.Image, Sequence[str]]]


def draw_sheet(title: str, subtitle: str, rows: Sequence[SheetRow], side: int) -> PillowImage.Image:
    """Draw rows of images of `side` pixels."""
    captions = max(len(lines) for row in rows for _, lines in row.pictures)
    step = side + captions * _LINE + 14
    top, left = 86, _GAP + _TEXT
    width = max(left + max(len(row.pictures) for row in rows) * (side + 4) + _GAP, 640)
    sheet = PillowImage.new("RGB", (width, top + len(rows) * step + _GAP), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    large, normal, small = (ImageFont.load_default(size) for size in (20, 15, 12))
    pen.text((_GAP, 18), title, INK, large)
    pen.text((_GAP, 50), shortened(subtitle, small, width - 2 * _GAP), FAINT, small)
    for number, row in enumerate(rows):
        y = top + number * step
        pen.line((_GAP, y - 7, width - _GAP, y - 7), RULE)
        for place, line in enumerate(row.lines):
            font, color = (small, FAINT) if place else (normal, INK)
            pen.text((_GAP, y + 4 + 24 * place), shortened(line, font, _TEXT - 10), color, font)
        for place, (picture, lines) in enumerate(row.pictures):
            x = left + place * (side + 4)
            sheet.paste(picture, (x, y))
            for below, line in enumerate(lines):
                pen.text((x, y + side + 3 + below * _LINE), shortened(line, small, side), FAINT, small)
    return sheet


def write_gallery(
    folder: Path, clusters: Clusters, images: ImageSet, model: Backend, *, prototypes: int
) -> None:
    """Write index.html with the most used prototypes, `prototypes` of them."""
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
    """Return text and pictures of the most used prototypes, `prototypes` of them, as the pages show them."""
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
