"""`swav-tf data shard`: pack many files into few."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from cli.options import NEW_FOLDER, Report, count_option, part_option, report_options, threads_option
from cli.progress import image_progress, load_tensorflow_quietly

PACKED = ("class_folders", "images", "list", "tar", "parquet")


@click.command(short_help="Pack images into TFRecord shards.")
@click.argument("data")
@click.argument("output", type=NEW_FOLDER)
@click.option(
    "--kind", type=click.Choice(PACKED), show_default="detected from the content of DATA",
    help="class_folders: DATA/<class>/*.JPEG; images: any images below DATA, unlabeled; list: a file of paths; tar, "
    "parquet: files, or a folder of them.",
)  # fmt: skip
@count_option("--shards", show_default="from --shard-mib", help="Number of shards.")
@count_option("--shard-mib", metavar="MIB", default=256, help="Approximate size of a shard in MiB.")
@part_option("Pack", "each has its own shards, and is read together with the others", otherwise="all images")
@threads_option("Threads that read and pack images")
@click.option("--fresh", is_flag=True, help="Start over and delete the shards that are already in OUTPUT.")
@report_options
def command(
    data: str,
    output: Path,
    kind: str | None,
    shards: int | None,
    shard_mib: int,
    part: str | None,
    threads: int,
    fresh: bool,
    report: Report,
) -> None:
    """Pack all images of DATA into TFRecord shards in OUTPUT, with the files' bytes unchanged.

    After an interruption, run the same command again: finished shards are kept. The bytes of the shards depend only
    on the images and the number of shards. A run that was started on DATA can resume on OUTPUT.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data shard photos/ shards/photos --kind images --shards 64 --threads 16
      swav-tf data shard photos/ shards/photos --part 17/400
    """
    from swav_tf.data.sharding import write_shards
    from swav_tf.data.sources import open_source, recognized
    from swav_tf.plumbing.errors import DataError
    from swav_tf.plumbing.parts import part_numbers
    from swav_tf.recipe.data import Data

    numbers = part_numbers(part, os.environ)
    load_tensorflow_quietly()  # it writes the records
    settings = recognized(Data.model_validate({"kind": kind or "auto", "path": data}))
    if settings.kind not in PACKED:
        raise DataError(f"`data shard` packs {', '.join(PACKED)}. Received: {data}, {settings.kind}.")
    source = open_source(settings)
    total = len(source) // (numbers[1] if numbers else 1)
    with image_progress(total, "packed", quiet=report.quiet) as progress:
        pack = partial(write_shards, source, output, shards=shards, shard_mib=shard_mib, part=numbers)
        packed = pack(threads=threads, fresh=fresh, on_progress=progress)
    index = packed.index
    size = sum(shard.bytes for shard in index.shards)
    images, classes, count = len(index.records), len(index.class_names), len(index.shards)
    lines = [
        f"{index.folder}: {images:,} images of {classes:,} classes in {count:,} shards, {size / 2**20:,.1f} MiB"
    ]
    if packed.kept:
        lines.append(f"{packed.kept:,} of the shards were already written")
    report.show(
        {
            "output": index.folder,
            "images": images,
            "classes": classes,
            "shards": count,
            "bytes": size,
            "kept_shards": packed.kept,
            "left_out": source.left_out.counts if source.left_out else {},
        },
        lines,
    )
