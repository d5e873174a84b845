"""`swav-tf clusters`: what the prototypes stand for."""

from __future__ import annotations

from pathlib import Path

import click

from cli.opening import open_data, open_model
from cli.options import (
    batch_size_option,
    data_argument,
    decoding_threads_option,
    json_option,
    kind_option,
    make_folder,
    max_bad_share_option,
    model_option,
    output_option,
    print_json,
    provider_option,
    quiet_option,
    split_option,
)
from cli.progress import image_progress

PRINTED = 12  # rows of the table on the terminal


@click.command(short_help="Assign images to prototypes; show the nearest images of each.")
@data_argument
@model_option
@provider_option
@output_option("Folder for tables and pictures.", metavar="DIR", required=True)
@kind_option
@split_option
@click.option(
    "--prototypes",
    type=click.IntRange(min=1),
    metavar="N",
    default=60,
    show_default=True,
    help="Prototypes to show, the most used ones; the tables have all.",
)
@click.option(
    "--images",
    "images_of_each",
    type=click.IntRange(1, 100),
    metavar="N",
    default=12,
    show_default=True,
    help="Nearest images to show for each.",
)
@batch_size_option
@decoding_threads_option
@max_bad_share_option
@quiet_option
@json_option
def command(
    data: str | None,
    model: str,
    provider: str | None,
    output: Path,
    kind: str | None,
    split: str | None,
    prototypes: int,
    images_of_each: int,
    batch_size: int,
    threads: int,
    max_bad_share: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Assign the images in DATA to the prototypes of greatest score, and show what each stands for.

    Without DATA: the images that the model was trained on. OUTPUT gets index.html (one file,
    readable without network), sheet.png, clusters.json, usage.csv (one row per prototype) and
    assignments.csv (one row per image).

    \b
    Examples:
      swav-tf clusters digits --split test --model runs/demo -o clusters
      swav-tf clusters ILSVRC2012/val --model runs/first -o clusters --prototypes 200
    """
    import json

    from evaluate.images import UnreadableImages

    runner = open_model(model, provider)

    from evaluate.cluster_page import write_cluster_sheets
    from evaluate.clusters import assign_images, summary, usage_table, write_tables
    from swav_tf.plumbing.files import atomic_write

    images = open_data(runner, data, kind, split)
    make_folder(output)
    share = runner.data.max_bad_share if max_bad_share is None else max_bad_share
    unreadable = UnreadableImages(len(images.source), share, output / "unreadable.csv")
    try:
        with image_progress(len(images.source), "clusters", quiet=quiet or as_json) as progress:
            clusters = assign_images(
                runner,
                images,
                images_of_each=images_of_each,
                batch_size=batch_size,
                threads=threads,
                unreadable=unreadable,
                on_progress=progress,
            )
    finally:
        unreadable.write_list()
    write_tables(clusters, images, output)
    write_cluster_sheets(
        output, clusters, images, model=runner.facts, view=runner.input_view, prototypes=prototypes
    )
    figures = {**summary(clusters), "unreadable": len(unreadable.reasons)}
    whole = {**figures, "model": runner.facts.as_dict(), "usage": usage_table(clusters)}
    with atomic_write(output / "clusters.json") as partial:
        partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(whole)
        return
    _print(figures, whole["usage"])
    click.echo(
        f"pages     {output / 'index.html'}\npicture   {output / 'sheet.png'}\ntables    {output}/*.csv"
    )


def _print(figures: dict[str, object], usage: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    headings = {
        "prototype": "prototype",
        "images": "images",
        "share": "share",
        "mean_score": "mean score",
        "top_class": "most frequent class",
        "top_class_share": "its share",
    }
    table = Table()
    columns = [key for key in headings if key in usage[0]]
    for key in columns:
        table.add_column(headings[key], justify="right")
    for row in usage[:PRINTED]:
        table.add_row(*(_cell(key, row[key]) for key in columns))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{figures['images']:,} images, {figures['prototypes_used']} of {figures['prototypes']} prototypes used, "
        f"as if {figures['effective_prototypes']} were used alike"
    )
    if "purity" in figures:
        console.print(f"purity {100 * float(str(figures['purity'])):.1f} %")
    console.print(table)
    if len(usage) > PRINTED:
        console.print(f"and {len(usage) - PRINTED} more in usage.csv")


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key in ("share", "top_class_share"):
        return f"{100 * float(str(value)):.1f} %"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
