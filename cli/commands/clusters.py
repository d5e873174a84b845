"""`swav-tf clusters`: what the prototypes represent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cli.model_options import ModelChoice, model_options
from cli.options import (
    ImageChoice,
    ReadingChoice,
    Report,
    count_option,
    image_options,
    make_folder,
    output_option,
    reading_options,
    report_options,
)
from cli.progress import image_progress
from cli.tables.plain import print_table

PRINTED = 12  # rows of the table on the terminal
HEADINGS = {
    "prototype": "prototype",
    "images": "images",
    "share": "share",
    "mean_score": "mean score",
    "top_class": "most frequent class",
    "top_class_share": "its share",
}


@click.command(short_help="Assign images to prototypes and show the nearest images of each.")
@image_options()
@model_options
@output_option("Folder for tables and pictures.", metavar="DIR", required=True)
@count_option("--prototypes", default=60, help="Prototypes to show, most used first; the tables list all.")
@count_option("--nearest", most=100, default=12, help="Nearest images to show for each prototype.")
@reading_options
@report_options
def command(
    images: ImageChoice,
    model: ModelChoice,
    output: Path,
    prototypes: int,
    nearest: int,
    reading: ReadingChoice,
    report: Report,
) -> None:
    """Assign each image in DATA to the prototype with the highest score, and show each prototype's nearest images.

    Without DATA, the images that the model was trained on are used. OUTPUT receives index.html (one file, readable
    offline), clusters.json, usage.csv (one row per prototype) and assignments.csv (one row per image).

    \b
    Examples:
      swav-tf clusters digits --split test --model runs/demo --output clusters
      swav-tf clusters ILSVRC2012/val --model runs/first --output clusters --prototypes 200
    """
    backend = model.open()

    from evaluate.clusters import assign_images, write_tables
    from evaluate.gallery import write_gallery

    opened = images.open(backend)
    make_folder(output)
    with image_progress(len(opened.source), "clusters", quiet=report.quiet) as progress:
        clusters = assign_images(
            backend,
            opened,
            unreadable_list=output / "unreadable.csv",
            images_of_each=nearest,
            batch_size=reading.batch,
            threads=reading.threads,
            max_bad_share=reading.bad_share_of(backend),
            on_progress=progress,
        )
    document = write_tables(output, clusters, opened, backend.facts)
    write_gallery(output, clusters, opened, backend, prototypes=prototypes)
    if report.as_json:
        report.show(document)
        return
    _print(document, document["usage"])
    click.echo(f"page      {output / 'index.html'}\ntables    {output}/*.csv")


def _print(figures: Mapping[str, Any], usage: Sequence[Mapping[str, Any]]) -> None:
    click.echo(
        f"{figures['images']:,} images, {figures['prototypes_used']} of {figures['prototypes']} prototypes used; "
        f"effective number of prototypes: {figures['effective_prototypes']}"
    )
    if "purity" in figures:
        click.echo(f"purity {100 * figures['purity']:.1f} %")
    columns = [key for key in HEADINGS if key in usage[0]]
    rows = [[_cell(key, row[key]) for key in columns] for row in usage[:PRINTED]]
    print_table([HEADINGS[key] for key in columns], rows)
    if len(usage) > PRINTED:
        click.echo(f"and {len(usage) - PRINTED} more in usage.csv")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("share", "top_class_share"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
