"""`swav-tf clusters`: show what the prototypes represent."""

from __future__ import annotations

from pathlib import Path

import click

from cli.model_options import ModelChoice, own_model_options
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


@click.command()
@image_options()
@own_model_options
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

    from evaluate.clusters import assign_images, write_gallery, write_tables

    opened = images.open(backend.data)
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
    purity = f"; purity {100 * document['purity']:.1f} %" if "purity" in document else ""
    lines = [
        f"{document['images']:,} images, {document['prototypes_used']} of {document['prototypes']} prototypes used; "
        f"effective number of prototypes: {document['effective_prototypes']}{purity}",
        f"page      {output / 'index.html'}\ntables    {output}/*.csv",
    ]
    report.show(document, lines)
