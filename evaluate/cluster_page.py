"""Prototypes with their nearest images, as a page and as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from evaluate.backends.backend import ModelIdentity
from evaluate.clusters import Clusters, shown_prototypes, summary, usage_table
from evaluate.feature_file import class_name
from evaluate.images import ImageSet
from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.pictures import shortened
from swav_tf.data.sources import ImageSource, read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.names import printable
from swav_tf.recipe.pretraining import EvaluationView

BACKGROUND: Final = (250, 250, 248)
INK: Final = (40, 40, 44)
FAINT: Final = (125, 125, 130)
RULE: Final = (222, 222, 218)


def thumbnail(source: ImageSource, index: int, view: EvaluationView, side: int) -> PillowImage.Image:
    """What the model saw of an image, as a square of `side` pixels; an enlarged one shows its pixels.

    Raises:
        DataError: the image cannot be read (any more).
    """
    try:
        return scaled(evaluation_view(read_image(source, index), view), side)
    except (UndecodableImage, OSError) as error:
        raise DataError(f"{source.image_name(index)} cannot be read: {error}") from error


def scaled(image: Image, side: int) -> PillowImage.Image:
    """A square image at another size."""
    enlarge = image.shape[0] < side
    method = PillowImage.Resampling.NEAREST if enlarge else PillowImage.Resampling.LANCZOS
    return PillowImage.fromarray(image).resize((side, side), method)


def data_address(picture: PillowImage.Image) -> str:
    """The picture as a `data:` address for HTML: as PNG or JPEG, whichever is smaller."""
    encoded = []
    for name, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        encoded.append((len(buffer.getvalue()), name, buffer.getvalue()))
    _, name, data = min(encoded)
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"


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


PICTURE_PROTOTYPES: Final = 30  # a picture of more could not be looked at


def write_cluster_sheets(
    folder: Path,
    clusters: Clusters,
    images: ImageSet,
    *,
    model: ModelIdentity,
    view: EvaluationView,
    prototypes: int,
) -> None:
    """Writes index.html, and sheet.png with the first prototypes of it.

    Args:
        folder: where to.
        clusters: the assignment.
        images: the same images.
        model: what assigned them.
        view: how it saw them.
        prototypes: the most used ones are shown, so many.

    Raises:
        DataError: an image cannot be read any more.
    """
    shown = shown_prototypes(clusters, prototypes)
    rows = {row["prototype"]: row for row in usage_table(clusters)}
    pictures = {
        prototype: [
            thumbnail(images.source, int(clusters.index[row]), view, SIDE)
            for row in clusters.nearest[prototype]
        ]
        for prototype in shown
    }
    sheet = draw_clusters(clusters, shown[:PICTURE_PROTOTYPES], rows, pictures)
    with atomic_write(folder / "sheet.png") as partial:
        sheet.save(partial)
    page = cluster_page(clusters, images, model, shown, rows, pictures)
    with atomic_write(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")


_STYLE = """
:root { --ink: #28282c; --faint: #6f6f76; --rule: #e2e2dd; --page: #fafaf8; --card: #fff; --bar: #4c78a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --faint: #9a9aa2; --rule: #37373c; --page: #19191c; --card: #222226; --bar: #6f9bcb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 28px; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 4px; }
p { margin: 4px 0; color: var(--faint); max-width: 82ch; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 16px; }
.figure b { display: block; font-size: 22px; font-weight: 600; } .figure span { color: var(--faint); font-size: 13px; }
svg { width: 100%; height: 140px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
svg rect { fill: var(--bar); } svg line { stroke: var(--faint); stroke-dasharray: 4 4;
  vector-effect: non-scaling-stroke; }
article { display: grid; grid-template-columns: 150px 1fr; gap: 16px; padding: 14px 0;
  border-top: 1px solid var(--rule); }
article h3 { font-size: 15px; margin: 0; } article p { font-size: 13px; margin: 0; }
.bar { height: 6px; border-radius: 3px; background: var(--bar); margin: 6px 0; min-width: 2px; }
.images { display: flex; flex-wrap: wrap; gap: 4px; }
figure { margin: 0; } figure img { display: block; border-radius: 3px; width: 80px; height: 80px;
  image-rendering: auto; } figcaption { font-size: 11px; color: var(--faint); text-align: center; }
@media (max-width: 700px) { article { grid-template-columns: 1fr; } }
"""


def cluster_page(
    clusters: Clusters,
    images: ImageSet,
    model: ModelIdentity,
    shown: Sequence[int],
    rows: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, Sequence[PillowImage.Image]],
) -> str:
    """The page as text: figures, usage of all prototypes, a card for each that is shown.

    Args:
        clusters: the assignment.
        images: the same images.
        model: what assigned them.
        shown: prototypes, from the top.
        rows: of `usage_table`, by prototype.
        pictures: of the nearest images, by prototype.
    """
    figures = summary(clusters)
    where = images.settings.path or f"{images.settings.kind}, split {images.settings.split}"
    tiles = [
        (f"{figures['images']:,}", "images"),
        (f"{figures['prototypes_used']:,} of {figures['prototypes']:,}", "prototypes with an image"),
        (f"{figures['effective_prototypes']:g}", "effective prototypes"),
        (f"{100 * figures['largest_share']:.1f} %", "of the images at the most used one"),
        (f"{figures['mean_score']:.3f}", "mean score of image and prototype"),
    ]
    if "purity" in figures:
        tiles.append((f"{100 * figures['purity']:.1f} %", "purity"))
    most = max(row["images"] for row in rows.values())
    meaning = (
        "Effective prototypes: the number that, used alike, would have the same entropy of usage."
        + (
            " Purity: share of images of the class that is most frequent at their prototype."
            if "purity" in figures
            else ""
        )
        + " Score: cosine of projection and prototype."
    )
    cards = "".join(
        _card(clusters, images, rows[prototype], pictures[prototype], most) for prototype in shown
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Prototypes of {escape(model.recipe)}</title>
<style>{_STYLE}</style>
<h1>Prototypes and their images</h1>
<p>Model {escape(model.path)} ({escape(model.recipe)}, step {model.step:,}), images {escape(where)}</p>
<div class="figures">{"".join(f'<div class="figure"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)}</div>
<p>{meaning}</p>
<h2>Usage</h2>
<p>Images at each of the {clusters.count:,} prototypes, the most used ({most:,} images) first; the dashed line is
equal usage, {len(clusters.index) / clusters.count:,.1f} images.</p>
{_usage_chart(sorted((row["images"] for row in rows.values()), reverse=True))}
<h2>Nearest images</h2>
<p>Shown: {most_used(len(shown))}, each with the images of greatest score, whichever prototype these go to.
usage.csv lists all prototypes, assignments.csv all images.</p>
{cards}
</html>
"""


def _usage_chart(counts: Sequence[int]) -> str:
    """Bars, the largest 100 units high, one unit wide each."""
    most, mean = max(counts), sum(counts) / len(counts)
    bars = "".join(
        f'<rect x="{i + 0.1:.1f}" y="{104 - 100 * n / most:.2f}" width="0.8" height="{100 * n / most:.2f}">'
        f"<title>{n:,} images</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    level = 104 - 100 * mean / most
    return (
        f'<svg viewBox="0 0 {len(counts)} 104" preserveAspectRatio="none" role="img" '
        f'aria-label="usage of the prototypes">{bars}'
        f'<line x1="0" x2="{len(counts)}" y1="{level:.2f}" y2="{level:.2f}"/></svg>'
    )


def _card(
    clusters: Clusters,
    images: ImageSet,
    row: Mapping[str, Any],
    pictures: Sequence[PillowImage.Image],
    most: int,
) -> str:
    prototype = row["prototype"]
    of_class = ""
    if row.get("top_class") is not None:
        of_class = f"<p>{100 * row['top_class_share']:.0f} % are {escape(row['top_class'])}</p>"
    shown = []
    for near, score, picture in zip(
        clusters.nearest[prototype], clusters.nearest_scores[prototype], pictures, strict=True
    ):
        name = printable(images.source.image_name(int(clusters.index[near])))
        label = class_name(int(clusters.labels[near]), clusters.class_names)
        title = escape(f"{name}{f', class {label}' if label else ''}, score {score:.3f}")
        shown.append(
            f'<figure><img src="{data_address(picture)}" alt="{title}" title="{title}">'
            f"<figcaption>{score:.2f}</figcaption></figure>"
        )
    return (
        f"<article><div><h3>Prototype {prototype}</h3>"
        f'<div class="bar" style="width:{100 * row["images"] / most:.1f}%"></div>'
        f"<p>{row['images']:,} images, {100 * row['share']:.1f} %</p>"
        f"<p>mean score {row['mean_score']:.3f}</p>{of_class}</div>"
        f'<div class="images">{"".join(shown)}</div></article>\n'
    )
