"""`swav-tf report`: show a run on one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import FOLDER, NEW_FILE, Report, count_option, moved_option, report_options
from cli.progress import image_progress, load_tensorflow_quietly
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.files import check_writable
from swav_tf.plumbing.log import log


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--output", type=NEW_FILE, metavar="FILE", show_default="report.html in RUN", help="HTML file to write."
)
@moved_option
@count_option(
    "--limit", default=2000, help="Show prototypes, neighbors and map of at most N images, chosen at random."
)
@report_options
def command(run: Path, output: Path | None, data: str | None, limit: int, report: Report) -> None:
    """Write a report on the pretraining run in RUN: one HTML file that works offline. The run need not be complete.

    It shows curves of loss, k-NN accuracy, learning rate and number of prototypes used; prototypes with their nearest
    images; the nearest neighbors of ten images; a map of the features; crops; the recipe; and unreadable images.
    Without the images, or before the first checkpoint, it shows the rest.

    \b
    Examples:
      swav-tf report runs/photos
      swav-tf report runs/photos --output photos.html --data /mnt/photos
    """
    from evaluate.page import check_matplotlib

    check_matplotlib()
    if output is None:
        check_writable(output := run / "report.html")
    from evaluate.backends import open_model
    from evaluate.images import open_images
    from evaluate.run_report import Run, draw_pictures, write_run_report

    found = Run.read(run)
    pictures, missing = None, ""
    try:
        images = open_images(data, like=found.recipe.data)
        load_tensorflow_quietly()
        with image_progress(min(limit, len(images.source)), "report", quiet=report.quiet) as progress:
            pictures = draw_pictures(found.recipe, open_model(run), images, limit=limit, on_progress=progress)
    except SwavError as error:
        missing = str(error)
        log.warning("Prototypes, neighbors, map and crops are not shown. %s", missing)
    write_run_report(output, found, pictures, missing=missing)
    report.show({"page": str(output), "missing": missing}, [f"page      {output}"])
