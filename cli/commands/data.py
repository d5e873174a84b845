"""`swav-tf data`: pack images into shards, check them, make crops for other machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.evaluation import image_progress, quiet_option
from cli.options import config_option, data_argument, json_option, override_option, print_json
from cli.quiet import load_tensorflow_quietly

if TYPE_CHECKING:
    from swav_tf.data.check import DataReport
    from swav_tf.data.positions import CropsByPosition
    from swav_tf.data.sources import ImageSource

_LISTED = 20
_CLASSES_LISTED = 5

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default="one a core",
    help="Threads that work.",
)


@click.group(short_help="Pack, check, draw from and serve images.")
def command() -> None:
    """Pack images into shards, check images, draw a share of the labels, make crops for other machines.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data check shards/train --sheet sheet.png
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --port 5050
    """


@command.command(short_help="Pack a folder of images into TFRecord shards.")
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
    help="So many shards.  [default: as --shard-mib says]",
)
@click.option(
    "--shard-mib",
    type=click.IntRange(min=1),
    metavar="MIB",
    default=256,
    show_default=True,
    help="Size of a shard, about, MiB.",
)
@threads_option
@click.option("--fresh", is_flag=True, help="Begin anew; shards of an earlier packing in OUTPUT are removed.")
@quiet_option
@json_option
def shard(
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

    Interrupted or killed, the same command goes on with the next shard. The shards' bytes depend on
    the images and the number of shards alone. They are read with -o data.kind=tfrecord; a run that was
    begun on IMAGES can go on with OUTPUT.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data shard photos/ shards/photos --kind images --shards 64 --threads 16
    """
    _load_what_reads(images)
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


@command.command(short_help="Look at every image: readable, how large, of what class.")
@click.argument("data")
@click.option(
    "--kind",
    type=click.Choice(["class_folders", "images", "tfrecord", "tfds", "digits"]),
    help="How DATA is read.  [default: tfrecord where there are shards, else class_folders]",
)
@click.option(
    "--split", metavar="NAME", default="train", show_default=True, help="Split of digits or a TFDS data set."
)
@click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    default=0.0,
    show_default=True,
    help="Share of unreadable images past which the exit code is 1.",
)
@click.option("--duplicates", is_flag=True, help="Find images whose bytes are the same, too.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw some of the images into this picture; the ending says the format.",
)
@threads_option
@quiet_option
@json_option
def check(
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
    _load_what_reads(data)
    from swav_tf.data.check import check_data
    from swav_tf.data.image_sheet import image_sheet
    from swav_tf.data.sources import guess_kind, open_source
    from swav_tf.recipe import Data
    from swav_tf.whole_file import whole_file

    kind = kind or guess_kind(data)
    source = open_source(
        Data.model_validate({"kind": kind, "path": None if kind == "digits" else data, "split": split})
    )
    with image_progress(len(source), "checked", quiet=quiet or as_json) as progress:
        report = check_data(source, threads=threads, duplicates=duplicates, on_progress=progress)
    if sheet is not None and len(report.corrupt) < report.images:
        drawn = image_sheet(source)
        with whole_file(sheet) as partial:
            drawn.save(partial)
    if as_json:
        print_json({"data": data, "kind": kind, **report.as_dict()})
    else:
        _print_report(data, kind, report)
        if sheet is not None:
            click.echo(f"{sheet}: some of the images")
    return 1 if report.corrupt_share > max_bad_share or report.bad_shards else 0


@command.command(short_help="List a share of the images, the same of each class.")
@click.argument("data")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    required=True,
    help="Of each class's images, 0 to 1; at least one is taken.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", required=True,
    help="List to write, one name a line.",
)  # fmt: skip
@click.option(
    "--kind",
    type=click.Choice(["class_folders", "tfrecord", "tfds", "digits"]),
    help="How DATA is read.  [default: tfrecord where there are shards, else class_folders]",
)
@click.option(
    "--split", metavar="NAME", default="train", show_default=True, help="Split of digits or a TFDS data set."
)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Of the draw."
)
@json_option
def subset(
    data: str, share: float, output: Path, kind: str | None, split: str, seed: int, as_json: bool
) -> None:
    """Draw a share of the labelled images in DATA, and list their names for `finetune --subset`.

    \b
    Examples:
      swav-tf data subset ILSVRC2012/train --share 0.1 -o ten_percent.txt
      swav-tf data subset digits --share 0.1 -o digits_10percent.txt
    """
    _load_what_reads(data)
    from swav_tf.data.sources import guess_kind, open_source
    from swav_tf.data.subset import draw_subset
    from swav_tf.recipe import Data
    from swav_tf.whole_file import whole_file

    kind = kind or guess_kind(data)
    source = open_source(
        Data.model_validate({"kind": kind, "path": None if kind == "digits" else data, "split": split})
    )
    names = draw_subset(source, share=share, seed=seed)
    with whole_file(output) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if as_json:
        print_json({"output": str(output), "images": len(names), "of": len(source), "seed": seed})
    else:
        click.echo(f"{output}: {len(names):,} of {len(source):,} images")


def _load_what_reads(path: str) -> None:
    """Paths with a scheme are read by TensorFlow; others need none."""
    from swav_tf.data.storage import is_remote

    if is_remote(path):
        load_tensorflow_quietly()


def _print_report(data: str, kind: str, report: DataReport) -> None:
    from swav_tf.data.names import printable

    click.echo(f"{printable(data)}: {report.images:,} images, read as {kind}")
    spreads = report.spreads()
    for name, unit in (("width", "px"), ("height", "px"), ("bytes", "bytes")):
        if name in spreads:
            least, median, greatest = spreads[name]
            click.echo(f"{name:8} {least:,.0f} to {greatest:,.0f} {unit}, median {median:,.0f}")
    if report.classes:
        least, median, greatest = spreads["images_per_class"]
        click.echo(
            f"classes  {len(report.classes):,}, of {least:,.0f} to {greatest:,.0f} images, median {median:,.0f}"
        )
        fewest = sorted(report.classes.items(), key=lambda item: item[1])[:_CLASSES_LISTED]
        if least < median:
            click.echo(
                "         fewest: " + ", ".join(f"{printable(name)} {count:,}" for name, count in fewest)
            )
    if report.unlabelled:
        click.echo(f"         {report.unlabelled:,} images have no class")
    if report.duplicates is not None:
        extra = sum(len(names) - 1 for names in report.duplicates)
        click.echo(f"copies   {extra:,} images have the bytes of another")
        _print_list([" = ".join(names) for names in report.duplicates])
    if report.bad_shards is not None:
        click.echo(f"shards   {len(report.bad_shards):,} with a wrong checksum")
        _print_list([f"{name}: {reason}" for name, reason in report.bad_shards.items()])
    click.echo(f"corrupt  {len(report.corrupt):,} images cannot be read ({100 * report.corrupt_share:.3g} %)")
    _print_list([f"{name}: {reason}" for name, reason in report.corrupt.items()])


def _print_list(lines: list[str]) -> None:
    for line in lines[:_LISTED]:
        click.echo(f"         {line}")
    if len(lines) > _LISTED:
        click.echo(f"         and {len(lines) - _LISTED:,} more: --json has them all")


@command.command(short_help="Make crops for trainers on other machines (tf.data service).")
@data_argument
@config_option
@override_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=5050,
    show_default=True,
    help="Port of the dispatcher, which trainers are given; 0: a free one.",
)
@click.option(
    "--host",
    metavar="HOST",
    help="Name or address of this machine that trainers can reach.  [default: its host name]",
)
@click.option(
    "--join",
    metavar="HOST:PORT",
    help="Work for the dispatcher that runs there.  [default: run the dispatcher here, and one worker]",
)
def serve(
    data: str | None, config: str, overrides: tuple[str, ...], port: int, host: str | None, join: str | None
) -> None:
    """Make the crops of DATA for trainers that are given -o data.service=HOST:PORT.

    Recipe, settings and images must be those of the run: they decide the crops. One process does
    what one Python can; start more with --join, on as many machines as see the images. Trainers get
    the crops that they would have made themselves, also when a worker ends.

    TensorFlow's service asks nobody who they are: open its ports to trusted machines only.

    \b
    Examples:
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --port 5050
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --join 10.0.0.5:5050
    """
    import signal
    import socket
    import threading

    source, crops = _what_to_serve(config, overrides, data)

    load_tensorflow_quietly()
    from swav_tf.data.service import Served

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    served = Served(crops, port=0 if join else port, join=join, host=host or socket.gethostname())
    click.echo(f"crops of {len(source):,} images: -o data.service={served.address}   (Ctrl-C ends)")
    ended.wait()
    served.close()


def _what_to_serve(
    config: str, overrides: tuple[str, ...], data: str | None
) -> tuple[ImageSource, CropsByPosition]:
    """Images and crops of the run that the options describe."""
    import json

    from swav_tf.data.positions import CropsByPosition
    from swav_tf.data.sources import open_source
    from swav_tf.data.subset import read_subset
    from swav_tf.recipe import Recipe
    from swav_tf.recipe_files import load_any_recipe

    if data is not None:
        overrides = (*overrides, f"data.path={json.dumps(data, ensure_ascii=False)}")
    recipe = load_any_recipe(config, overrides)
    source = open_source(recipe.data)
    labelled = not isinstance(recipe, Recipe)
    if not isinstance(recipe, Recipe) and recipe.subset is not None:
        source = read_subset(recipe.subset, source)
    batch_size = recipe.train.batch_size
    if len(source) < batch_size:
        raise click.UsageError(f"{len(source):,} images do not fill a batch of {batch_size:,}")
    images_per_epoch = len(source) // batch_size * batch_size
    crops = CropsByPosition(recipe, source, images_per_epoch=images_per_epoch, labelled=labelled)
    return source, crops
