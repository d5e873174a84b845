"""`swav-tf features`: features of images, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import (
    ImageChoice,
    ModelChoice,
    ReadingChoice,
    Report,
    image_options,
    model_options,
    output_option,
    reading_options,
    report_options,
)
from cli.progress import image_progress

if TYPE_CHECKING:
    from evaluate.backends.backend import ModelIdentity
    from evaluate.features import Extraction


@click.command()
@image_options()
@model_options
@output_option("Feature file to write: .npz, .npy or .parquet.", required=True)
@reading_options
@click.option("--fresh", is_flag=True, help="Start over, even if the output exists or is unfinished.")
@report_options
def command(
    images: ImageChoice,
    model: ModelChoice,
    output: Path,
    reading: ReadingChoice,
    fresh: bool,
    report: Report,
) -> None:
    """Compute the features of the images in DATA: a folder, TFRecord shards, a TFDS name, or `digits`.

    Without DATA, the images that the model was trained on are used. An interrupted command resumes when it is run
    again. Unreadable images are skipped and listed in OUTPUT.unreadable.csv.

    \b
    .npz      one file, read into memory: up to about 100,000 images
    .npy      memory-mapped, for millions; names and labels in OUTPUT.csv, facts in OUTPUT.json
    .parquet  one row per image, for data frames and databases

    \b
    Examples:
      swav-tf features digits --split test --model runs/demo --output test.npz
      swav-tf features ILSVRC2012/train --model runs/first --output train.npy --batch 256
      swav-tf features photos/ --kind images --model runs/first --output photos.parquet
    """
    from evaluate.feature_file import check_format

    check_format(output)  # before TensorFlow loads
    backend = model.open()

    from evaluate.features import extract_features

    opened = images.open(backend)
    with image_progress(len(opened.source), "features", quiet=report.quiet) as progress:
        result = extract_features(
            backend,
            opened,
            output,
            batch_size=reading.batch,
            threads=reading.threads,
            max_bad_share=reading.bad_share_of(backend),
            fresh=fresh,
            on_progress=progress,
        )
    _show(report, output, result, backend.facts)


def _show(report: Report, output: Path, result: Extraction, model: ModelIdentity) -> None:
    computed = result.images + result.unreadable - result.images_before
    speed = computed / result.seconds if computed else None
    lines = [f"{output}: {result.images:,} images x {result.feature_dim} features"]
    if result.images_before:
        lines.append(f"{result.images_before:,} of the images had been computed before")
    if speed is not None:
        lines.append(f"{speed:,.0f} images/s over {result.seconds:.1f} s")
    if result.unreadable:
        lines.append(
            f"{result.unreadable:,} unreadable images are left out, listed in {output}.unreadable.csv"
        )
    document = {
        "output": str(output),
        "images": result.images,
        "feature_dim": result.feature_dim,
        "unreadable": result.unreadable,
        "images_before": result.images_before,
        "images_per_second": speed,
        "model": model.as_dict(),
    }
    report.show(document, lines)
