"""`swav-tf validate`: the accuracy of a classifier that is there."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import (
    batch_size_option,
    data_argument,
    decoding_threads_option,
    json_option,
    kind_option,
    make_folder,
    output_option,
    print_json,
    split_option,
)
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Measure a classifier on labelled images.")
@click.argument("model", metavar="RUN")
@data_argument
@kind_option
@split_option
@output_option("Folder for accuracy by class and the confusion matrix.", metavar="DIR")
@batch_size_option
@decoding_threads_option
@json_option
def command(
    model: str,
    data: str | None,
    kind: str | None,
    split: str | None,
    output: Path | None,
    batch_size: int,
    threads: int,
    as_json: bool,
) -> None:
    """Measure the probe or fine-tuned model in RUN on the labelled images in DATA.

    RUN may be an import of somebody's classifier. Without DATA: the validation images of its recipe.
    The images must have the classifier's classes. One that cannot be read is an error: leaving it out
    would change the figure.

    \b
    Examples:
      swav-tf validate runs/demo/probe_digits
      swav-tf validate runs/released_probe ILSVRC2012/val -o runs/released_probe/val
    """
    load_tensorflow_quietly()
    from evaluate.images import open_images
    from swav_tf.training.classifier_folder import load_classifier, write_results
    from swav_tf.training.measure import measure

    classifier = load_classifier(model)
    own = classifier[1].data
    of_validation = {"path": own.validation_path, "split": own.validation_split or own.split}
    images = open_images(data, like=own.model_copy(update=of_validation), kind=kind, split=split)
    if output is not None:
        make_folder(output)
    settings = images.settings.model_copy(update={"threads": threads})
    counts, class_names = measure(classifier, images.source, settings, batch_size=batch_size)

    figures = counts.as_dict()
    if as_json:
        print_json({"run": model, "images": len(images.source), **figures})
    else:
        click.echo(
            f"{len(images.source):,} images, {len(class_names):,} classes: top-1 {100 * figures['top1']:.2f} %, "
            f"top-5 {100 * figures['top5']:.2f} %, loss {figures['loss']:.4f}"
        )
    if output is not None:  # after the figures: they are told also where these cannot be written
        title = f"{model}: top-1 {100 * figures['top1']:.1f} % of {len(images.source):,} images"
        write_results(output, counts, class_names, title)
        if not as_json:
            click.echo(f"{output}: per_class.csv, confusion.csv, confusion.png")
