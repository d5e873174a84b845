"""The nearest images of each prototype as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image as PillowImage

from evaluate.cluster_picture import most_used
from evaluate.clusters import Clusters, summary
from evaluate.feature_file import class_name
from evaluate.images import ImageSet
from evaluate.runners.runner import ModelIdentity
from evaluate.thumbnails import data_address
from swav_tf.data.names import printable

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
