"""`swav-tf data`: check images, pack them into shards, draw subsets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import (
    NEW_FILE,
    NEW_FOLDER,
    ImageChoice,
    Report,
    count_option,
    image_options,
    json_options,
    output_option,
    part_option,
    report_options,
    seed_option,
    threads_option,
)
from cli.progress import image_progress, load_tensorflow_quietly
from swav_tf.plumbing.names import counted

if TYPE_CHECKING:
    from swav_tf.data.check import DataReport

LISTED = 20  # problems of each kind; --json has all
PACKED = ("class_folders", "images", "list", "tar", "parquet")


@click.group()
def command() -> None:
    """Check images, pack them into shards, draw subsets of labeled images.

    \b
    Examples:
      swav-tf data check photos/
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data subset shards/train --share 0.1 --output ten_percent.txt
    """


@command.command(short_help="Check every image: readability, size, class.")
@image_options(required=True, default="detected from the content of DATA")
@click.option(
    "--max-bad-share", type=click.FloatRange(0, 1), metavar="SHARE", default=0.0,
    help="Largest acceptable share of unreadable images; above it, the exit code is 1.",
)  # fmt: skip
@click.option("--duplicates", is_flag=True, help="Also find images with identical bytes.")
@threads_option("Threads that read and decode images")
@report_options
def check(
    images: ImageChoice,
    max_bad_share: float,
    duplicates: bool,
    threads: int,
    report: Report,
) -> int:
    """Read and decode every image of DATA: a folder, a file, a glob pattern, a TFDS name or `digits`.

    Reports counts, classes, sizes and unreadable images. For shards with an index, it also reports wrong checksums. The
    exit code is 1 if too many images are unreadable or a checksum is wrong.

    \b
    Examples:
      swav-tf data check ILSVRC2012/train
      swav-tf data check photos/ --kind images --duplicates --json
      swav-tf data check shards/train
    """
    from swav_tf.data.check import check_data
    from swav_tf.recipe.data import Data

    opened = images.open(Data())
    source, kind = opened.source, opened.settings.kind
    with image_progress(len(source), "checked", quiet=report.quiet) as progress:
        found = check_data(source, threads=threads, duplicates=duplicates, on_progress=progress)
    data = str(images.data)
    left_out = source.left_out.counts if source.left_out else {}
    report.show(
        {"data": data, "kind": kind, **found.as_dict(), "left_out": left_out}, _lines(data, kind, found)
    )
    return 1 if found.corrupt_share > max_bad_share or found.bad_shards else 0


def _lines(data: str, kind: str, report: DataReport) -> Iterator[str]:
    """Yield counts, sizes, classes and lists of problems."""
    from swav_tf.plumbing.names import printable

    yield f"{printable(data)}: {report.images:,} images, read as {kind}"
    spreads = report.spreads()
    for name, unit in (("width", "px"), ("height", "px"), ("bytes", "bytes")):
        if name in spreads:
            least, median, greatest = spreads[name]
            yield f"{name:8} {least:,.0f} to {greatest:,.0f} {unit}, median {median:,.0f}"
    if report.classes:
        least, median, greatest = spreads["images_per_class"]
        yield f"classes  {len(report.classes):,}, of {least:,.0f} to {greatest:,.0f} images, median {median:,.0f}"
        fewest = sorted(report.classes.items(), key=lambda item: item[1])[:5]
        if least < median:
            yield "         fewest: " + ", ".join(f"{printable(name)} {count:,}" for name, count in fewest)
    if report.unlabeled:
        yield f"         {counted(report.unlabeled, 'image')} without a class"
    if report.duplicates is not None:
        extra = sum(len(names) - 1 for names in report.duplicates)
        yield f"copies   {counted(extra, 'image')} byte-identical to another"
        yield from _first([" = ".join(names) for names in report.duplicates])
    if report.bad_shards is not None:
        yield f"shards   {len(report.bad_shards):,} with a wrong checksum"
        yield from _first([f"{name}: {reason}" for name, reason in report.bad_shards.items()])
    yield f"corrupt  {len(report.corrupt):,} unreadable images ({100 * report.corrupt_share:.3g} %)"
    yield from _first([f"{name}: {reason}" for name, reason in report.corrupt.items()])


def _first(lines: list[str]) -> Iterator[str]:
    yield from (f"         {line}" for line in lines[:LISTED])
    if len(lines) > LISTED:
        yield f"         and {len(lines) - LISTED:,} more: --json has them all"


@command.command(short_help="Pack images into TFRecord shards.")
@click.argument("data")
@click.argument("output", type=NEW_FOLDER)
@click.option(
    "--kind", type=click.Choice(PACKED), show_default="detected from the content of DATA",
    help="class_folders: DATA/<class>/*.JPEG; images: any images below DATA, unlabeled; list: a file of paths; tar, "
    "parquet: files, or a folder of them.",
)  # fmt: skip
@count_option("--shards", show_default="from --shard-mib", help="Number of shards.")
@count_option("--shard-mib", metavar="MIB", default=256, help="Approximate size of a shard in MiB.")
@part_option(
    "Pack",
    "Each part has its own shards; all parts together are read as one data set",
    otherwise="all images",
)
@threads_option("Threads that read and pack images")
@click.option("--fresh", is_flag=True, help="Start over and delete the shards that are already in OUTPUT.")
@report_options
def shard(
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
        f"{index.folder}: {counted(images, 'image')} of {counted(classes, 'class', 'classes')} in "
        f"{counted(count, 'shard')}, {size / 2**20:,.1f} MiB"
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


@command.command(short_help="Draw a random share of each class's images.")
@image_options(
    required=True,
    kinds=("class_folders", "list", "tar", "parquet", "tfrecord", "tfds", "digits"),
    default="detected from the content of DATA",
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", required=True,
    help="Share of the images of each class, 0 to 1; at least one image per class is drawn.",
)  # fmt: skip
@output_option("List to write, one name per line.", type=NEW_FILE, required=True)
@seed_option("the draw")
@json_options
def subset(images: ImageChoice, share: float, output: Path, seed: int, report: Report) -> None:
    """Draw a random share of the labeled images in DATA and list their names, for `finetune --subset`.

    \b
    Examples:
      swav-tf data subset ILSVRC2012/train --share 0.1 --output ten_percent.txt
      swav-tf data subset digits --share 0.1 --output digits_10percent.txt
    """
    from swav_tf.data.subset import draw_subset
    from swav_tf.plumbing.files import atomic_write
    from swav_tf.recipe.data import Data

    source = images.open(Data()).source
    names = draw_subset(source, share=share, seed=seed)
    with atomic_write(output) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    report.show(
        {"output": str(output), "images": len(names), "of": len(source), "seed": seed},
        [f"{output}: {len(names):,} of {len(source):,} images"],
    )
