"""`swav-tf predict`: the classes of a folder's images."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import (
    batch_size_option,
    decoding_threads_option,
    output_option,
    provider_option,
    quiet_option,
)
from cli.progress import image_progress
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Write the most probable classes of a folder's images.")
@click.argument("model", metavar="RUN|FILE.onnx", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@output_option("File to write: .csv or .json.", required=True)
@provider_option
@batch_size_option
@decoding_threads_option
@quiet_option
def command(
    model: Path,
    folder: Path,
    output: Path,
    provider: str | None,
    batch_size: int,
    threads: int,
    quiet: bool,
) -> int:
    """Classify the images at any depth below FOLDER by the probe or fine-tuned model in RUN, or by an exported file.

    The five most probable classes of each image are written, with their probabilities. An image
    that cannot be read has its error in the file instead, and the exit code is 1. An exported file needs no
    TensorFlow.

    \b
    Examples:
      swav-tf predict runs/demo/probe_digits photos/ -o predictions.csv
      swav-tf predict runs/finetune_10pct photos/ -o predictions.json --batch-size 256
      swav-tf predict exported/model-int8-cpu.onnx photos/ -o predictions.csv
    """
    from cli.prediction import check_output, open_classifier, predict, write_predictions
    from swav_tf.data.folders import ImageFolder

    check_output(output)
    images = ImageFolder(folder)

    if model.suffix != ".onnx" and not model.is_file():
        load_tensorflow_quietly()
    classifier = open_classifier(model, provider)
    found = []
    with image_progress(len(images), "images", quiet=quiet) as done:
        for prediction in predict(classifier, images, batch_size=batch_size, threads=threads):
            found.append(prediction)
            done(len(found))
    write_predictions(output, found)
    unreadable = sum(prediction.error is not None for prediction in found)
    click.echo(
        f"{output}: {len(found) - unreadable:,} images{f', {unreadable:,} that cannot be read' if unreadable else ''}",
        err=True,
    )
    return 1 if unreadable else 0
