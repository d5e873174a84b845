"""`swav-tf predict`: predict the classes of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from cli.model_options import provider_option
from cli.options import (
    PATH,
    Report,
    batch_option,
    output_option,
    report_options,
    threads_option,
)
from cli.progress import image_progress
from cli.recipe_options import best_option


@click.command()
@click.argument("model", metavar="RUN|FILE.onnx", type=PATH)
@click.argument("data")
@output_option("File to write: .csv or .json.", required=True)
@best_option
@provider_option
@batch_option
@threads_option("Threads that decode images")
@report_options
def command(
    model: Path,
    data: str,
    output: Path,
    best: bool,
    provider: str | None,
    batch: int,
    threads: int,
    report: Report,
) -> int:
    """Classify the images in DATA with a probe, a fine-tuned model or an exported file.

    DATA is a folder with images at any depth, a zip file, a list of paths, or shards.

    The five most probable classes of each image are written with their probabilities. An unreadable image is listed
    with its error, and the exit code is 1. Files of a list that are missing are left out, with a warning. An exported
    file needs no TensorFlow.

    \b
    Examples:
      swav-tf predict runs/demo/probe_digits photos/ --output predictions.csv
      swav-tf predict runs/finetune_10pct photos/ --output predictions.json --batch 256
      swav-tf predict exported/model-int8-cpu.onnx photos/ --output predictions.csv
    """
    if output.suffix.lower() not in (".csv", ".json"):
        raise click.UsageError(f"--output must end in .csv or .json. Received: {output}.")
    if output.exists() and Path(data).exists() and output.samefile(data):
        raise click.UsageError(f"--output must be another file than DATA. Received: {output} for both.")
    from cli.prediction import Prediction, open_classifier, predict, write_predictions
    from swav_tf.data.sources import open_source, recognized
    from swav_tf.recipe.data import Data

    found = recognized(Data(path=data))
    # Labels are not needed: images next to class folders are read, too.
    kind = "images" if found.kind == "class_folders" else found.kind
    own = {"kind": kind, "path": found.path, "split": found.split, "labels": None}
    classifier = open_classifier(model, provider, best=best)
    images = open_source(classifier.data.model_copy(update=own))  # which are decoded as in training
    unreadable = 0
    with image_progress(len(images), "images", quiet=report.quiet) as done:

        def counted() -> Iterator[Prediction]:
            nonlocal unreadable
            predictions = predict(classifier, images, batch_size=batch, threads=threads)
            for number, prediction in enumerate(predictions, start=1):
                unreadable += prediction.error is not None
                done(number)
                yield prediction

        write_predictions(output, counted())
    readable = len(images) - unreadable
    report.show(
        {"output": str(output), "images": readable, "unreadable": unreadable, "epoch": classifier.epoch},
        [
            f"{output}: {readable:,} images{f', {unreadable:,} unreadable' if unreadable else ''}"
            + (f"; weights of the {classifier.epoch}" if classifier.epoch else "")
        ],
    )
    return 1 if unreadable else 0
