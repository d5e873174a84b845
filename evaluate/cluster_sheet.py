"""The nearest images of each prototype, for people: a page that needs no network, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evaluate.cluster_page import cluster_page
from evaluate.cluster_picture import SIDE, draw_clusters
from evaluate.clusters import Clusters, shown_prototypes, usage_table
from evaluate.images import ImageSet
from evaluate.runners.runner import ModelIdentity
from evaluate.thumbnails import thumbnail
from swav_tf.recipe import EvaluationView
from swav_tf.whole_file import whole_file

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
    with whole_file(folder / "sheet.png") as partial:
        sheet.save(partial)
    page = cluster_page(clusters, images, model, shown, rows, pictures)
    with whole_file(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
