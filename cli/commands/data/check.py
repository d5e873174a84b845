"""`swav-tf data check`: find unreadable images before a run does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.options import ImageChoice, Report, image_options, report_options, threads_option
from cli.progress import image_progress

if TYPE_CHECKING:
    from swav_tf.data.check import DataReport

LISTED = 20  # problems of each kind; --json has all


@click.command(short_help="Check every image: readability, size, class.")
@image_options(required=True, default="detected from the content of DATA")
@click.option(
    "--max-bad-share", type=click.FloatRange(0, 1), metavar="SHARE", default=0.0,
    help="Largest acceptable share of unreadable images; above it, the exit code is 1.",
)  # fmt: skip
@click.option("--duplicates", is_flag=True, help="Also find images with identical bytes.")
@threads_option("Threads that read and decode images")
@report_options
def command(
    images: ImageChoice,
    max_bad_share: float,
    duplicates: bool,
    threads: int,
    report: Report,
) -> int:
    """Read and decode every image of DATA: a folder, a file, a glob pattern, a TFDS name or `digits`.

    Reports counts, classes, sizes and unreadable images, and for shards with an index wrong checksums. The exit code is
    1 if too many images are unreadable or a checksum is wrong.

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
        yield f"         {report.unlabeled:,} images have no class"
    if report.duplicates is not None:
        extra = sum(len(names) - 1 for names in report.duplicates)
        yield f"copies   {extra:,} images are byte-identical to another"
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
