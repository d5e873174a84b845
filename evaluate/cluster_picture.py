"""The nearest images of each prototype as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from evaluate.clusters import Clusters, summary
from evaluate.thumbnails import BACKGROUND, FAINT, INK, RULE
from swav_tf.data.caption import shortened

SIDE: Final = 96  # of a thumbnail, pixels
_GAP: Final = 24
_TEXT: Final = 190  # width of the column of text


def draw_clusters(
    clusters: Clusters,
    shown: Sequence[int],
    rows: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, Sequence[PillowImage.Image]],
) -> PillowImage.Image:
    """A line for each prototype: its usage, then its images.

    Args:
        clusters: the assignment.
        shown: prototypes, from the top.
        rows: of `usage_table`, by prototype.
        pictures: of the nearest images, by prototype; SIDE pixels wide and high.
    """
    per_row = clusters.nearest.shape[1]
    step = SIDE + 14
    top = 86
    width = _GAP + _TEXT + per_row * (SIDE + 4) + _GAP
    sheet = PillowImage.new("RGB", (max(width, 640), top + len(shown) * step + _GAP), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    large, normal, small = (ImageFont.load_default(size) for size in (20, 15, 12))
    figures = summary(clusters)
    pen.text((_GAP, 18), "Nearest images of each prototype", INK, large)
    pen.text((_GAP, 50), _headline(figures, len(shown)), FAINT, small)
    most = max(row["images"] for row in rows.values())
    for number, prototype in enumerate(shown):
        y, row = top + number * step, rows[prototype]
        pen.line((_GAP, y - 7, sheet.width - _GAP, y - 7), RULE)
        pen.text((_GAP, y + 4), f"prototype {prototype}", INK, normal)
        pen.text((_GAP, y + 28), f"{row['images']:,} images, {100 * row['share']:.1f} %", FAINT, small)
        pen.rectangle((_GAP, y + 48, _GAP + 150 * row["images"] // most, y + 53), (76, 120, 168))
        if row.get("top_class") is not None:
            text = f"{100 * row['top_class_share']:.0f} % are {row['top_class']}"
            pen.text((_GAP, y + 62), shortened(text, small, _TEXT - 10), FAINT, small)
        for place, picture in enumerate(pictures[prototype]):
            sheet.paste(picture, (_GAP + _TEXT + place * (SIDE + 4), y))
    return sheet


def _headline(figures: Mapping[str, Any], shown: int) -> str:
    texts = [
        f"{figures['images']:,} images",
        f"{figures['prototypes_used']:,} of {figures['prototypes']:,} prototypes used",
        f"as if {figures['effective_prototypes']:g} were used alike",
        *([f"purity {100 * figures['purity']:.1f} %"] if "purity" in figures else []),
        f"shown: {most_used(shown)}",
    ]
    return "   ".join(texts)


def most_used(shown: int) -> str:
    """Which prototypes are shown, in words."""
    return "the most used prototype" if shown == 1 else f"the {shown:,} most used prototypes"
