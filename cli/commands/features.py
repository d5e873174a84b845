"""`swav-tf features`: what the backbone says of images, in a file."""

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
    max_bad_share_option,
    model_option,
    output_option,
    print_json,
    provider_option,
    quiet_option,
    split_option,
)
from cli.progress import image_progress


@click.command(short_help="Compute features of images into a file.")
@data_argument
@model_option
@provider_option
@output_option("Feature file to write, .npz, .npy or .parquet.", required=True)
@kind_option
@split_option
@batch_size_option
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="N",
    default=4096,
    show_default=True,
    help="Images whose features are kept for good together: what an interruption loses at most.",
)
@decoding_threads_option
@max_bad_share_option
@click.option("--fresh", is_flag=True, help="Start over, even if this output exists or was begun.")
@quiet_option
@json_option
def command(
    data: str | None,
    model: str,
    provider: str | None,
    output: Path,
    kind: str | None,
    split: str | None,
    batch_size: int,
    shard_size: int,
    threads: int,
    max_bad_share: float | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compute the features of the images in DATA: a folder, TFRecord shards, a TFDS name, or `digits`.

    Without DATA: the images that the model was trained on. An interrupted command resumes when
    it is given again. Unreadable images are left out and listed in OUTPUT.unreadable.csv.

    \b
    .npz      one file, read whole into memory: up to some 100,000 images
    .npy      memory-mapped, for millions; names and labels in OUTPUT.csv, facts in OUTPUT.json
    .parquet  a folder of parts, one row per image, for data frames and databases

    \b
    Examples:
      swav-tf features digits --split test --model runs/demo -o test.npz
      swav-tf features ILSVRC2012/train --model runs/first -o train.npy --batch-size 256
      swav-tf features photos/ --kind images --model runs/first -o photos.parquet
    """
    from evaluate.feature_file import check_format

    check_format(output)  # before TensorFlow loads
    runner = open_model(model, provider)

    from evaluate.features import extract_features

    images = open_data(runner, data, kind, split)
    with image_progress(len(images.source), "features", quiet=quiet or as_json) as progress:
        result = extract_features(
            runner,
            images,
            output,
            batch_size=batch_size,
            shard_size=shard_size,
            threads=threads,
            max_bad_share=runner.data.max_bad_share if max_bad_share is None else max_bad_share,
            fresh=fresh,
            on_progress=progress,
        )
    computed = len(images.source) - result.images_before
    if as_json:
        print_json(
            {
                "output": str(output),
                "images": result.images,
                "feature_dim": result.feature_dim,
                "unreadable": len(result.unreadable),
                "images_before": result.images_before,
                "images_per_second": computed / result.seconds if computed else None,
                "model": runner.facts.as_dict(),
            }
        )
        return
    click.echo(f"{output}: {result.images:,} images x {result.feature_dim} features")
    if result.images_before:
        click.echo(f"{result.images_before:,} of the images were done before")
    if computed:
        click.echo(f"{computed / result.seconds:,.0f} images/s over {result.seconds:.1f} s")
    if result.unreadable:
        click.echo(
            f"{len(result.unreadable):,} unreadable images are left out, listed in {output}.unreadable.csv"
        )
