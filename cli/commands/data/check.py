"""`swav-tf data check`: what is wrong with images, before a run finds it."""

from __future__ import annotations

from pathlib import Path

import click

from cli.opening import open_source_of
from cli.options import given_split_option, json_option, print_json, quiet_option, threads_option
from cli.progress import image_progress


@click.command(short_help="Look at every image: readable, how large, of what class.")
@click.argument("data")
@click.option(
    "--kind",
    type=click.Choice(["class_folders", "images", "tfrecord", "tfds", "digits"]),
    help="How DATA is read.  [default: guessed from what is there]",
)
@given_split_option
@click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    default=0.0,
    show_default=True,
    help="Largest share of unreadable images; with more the exit code is 1.",
)
@click.option("--duplicates", is_flag=True, help="Also find images whose bytes are the same.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw some of the images into this picture; the ending decides the format.",
)
@threads_option("Threads that read and decode images")
@quiet_option
@json_option
def command(
    data: str,
    kind: str | None,
    split: str,
    max_bad_share: float,
    duplicates: bool,
    sheet: Path | None,
    threads: int,
    quiet: bool,
    as_json: bool,
) -> int:
    """Read and decode every image of DATA, a folder, shards, a TFDS name or `digits`.

    Tells counts, classes, sizes and which images cannot be read; of shards with an index the checksums
    too. Exit code 1 when too many images cannot be read, or a checksum is wrong.

    \b
    Examples:
      swav-tf data check ILSVRC2012/train --sheet sheet.png
      swav-tf data check photos/ --kind images --duplicates --json
      swav-tf data check shards/train
    """
    from evaluate.pictures import check_picture
    from swav_tf.data.check import check_data
    from swav_tf.data.pictures import image_sheet
    from swav_tf.plumbing.files import atomic_write

    if sheet is not None:
        check_picture(sheet)
    source, kind = open_source_of(data, kind, split)
    with image_progress(len(source), "checked", quiet=quiet or as_json) as progress:
        report = check_data(source, threads=threads, duplicates=duplicates, on_progress=progress)
    if sheet is not None and len(report.corrupt) < report.images:
        drawn = image_sheet(source)
        with atomic_write(sheet) as partial:
            drawn.save(partial)
    if as_json:
        print_json({"data": data, "kind": kind, **report.as_dict()})
    else:
        from cli.tables.data import print_report

        print_report(data, kind, report)
        if sheet is not None:
            click.echo(f"{sheet}: some of the images")
    return 1 if report.corrupt_share > max_bad_share or report.bad_shards else 0
