"""`swav-tf data shard`: many files as few."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import json_option, print_json, quiet_option, threads_option
from cli.progress import image_progress


@click.command(short_help="Pack a folder of images into TFRecord shards.")
@click.argument("images")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["class_folders", "images"]),
    default="class_folders",
    show_default=True,
    help="class_folders: IMAGES/<class>/*.JPEG; images: any images below IMAGES, unlabelled.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of shards.  [default: as --shard-mib gives]",
)
@click.option(
    "--shard-mib",
    type=click.IntRange(min=1),
    metavar="MIB",
    default=256,
    show_default=True,
    help="Approximate size of a shard, MiB.",
)
@threads_option("Threads that read and pack images")
@click.option("--fresh", is_flag=True, help="Start over; shards of an earlier packing in OUTPUT are removed.")
@quiet_option
@json_option
def command(
    images: str,
    output: Path,
    kind: str,
    shards: int | None,
    shard_mib: int,
    threads: int,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack all images below IMAGES into TFRecord shards in OUTPUT, the files' bytes as they are.

    After an interruption or a kill, the same command continues with the next shard. The shards' bytes depend
    only on the images and the number of shards. They are read with -o data.kind=tfrecord; a run that was
    started on IMAGES can resume on OUTPUT.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data shard photos/ shards/photos --kind images --shards 64 --threads 16
    """
    from swav_tf.data.sharding import write_shards
    from swav_tf.data.sources import open_folder

    source = open_folder(images, kind=kind)
    with image_progress(len(source), "packed", quiet=quiet or as_json) as progress:
        packed = write_shards(
            source,
            output,
            shards=shards,
            shard_mib=shard_mib,
            threads=threads,
            fresh=fresh,
            on_progress=progress,
        )
    index = packed.index
    size = sum(shard.bytes for shard in index.shards)
    if as_json:
        print_json(
            {
                "output": str(output),
                "images": len(index.records),
                "classes": len(index.class_names),
                "shards": len(index.shards),
                "bytes": size,
                "kept_shards": packed.kept,
            }
        )
        return
    click.echo(
        f"{output}: {len(index.records):,} images of {len(index.class_names):,} classes in {len(index.shards):,} "
        f"shards, {size / 2**20:,.1f} MiB"
    )
    if packed.kept:
        click.echo(f"{packed.kept:,} of the shards were written before")
