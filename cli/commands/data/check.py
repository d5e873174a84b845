"""`swav-tf data check`: find unreadable images before a run does."""

from __future__ import annotations

import click

from cli.options import ImageChoice, Report, image_options, report_options, threads_option
from cli.progress import image_progress


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

    source, kind = images.open_source()
    with image_progress(len(source), "checked", quiet=report.quiet) as progress:
        found = check_data(source, threads=threads, duplicates=duplicates, on_progress=progress)
    data = str(images.data)
    if report.as_json:
        left_out = source.left_out.counts if source.left_out else {}
        report.show({"data": data, "kind": kind, **found.as_dict(), "left_out": left_out})
    else:
        from cli.tables.data import print_report

        print_report(data, kind, found)
    return 1 if found.corrupt_share > max_bad_share or found.bad_shards else 0
