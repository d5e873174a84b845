"""`swav-tf validate`: measure the accuracy of a trained classifier."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import (
    ImageChoice,
    Report,
    batch_option,
    image_options,
    json_options,
    make_folder,
    output_option,
    threads_option,
)
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import best_option


@click.command()
@click.argument("model", metavar="RUN")
@image_options()
@output_option("Folder for the accuracy by class and the confusion matrix.", metavar="DIR")
@best_option
@batch_option
@threads_option("Threads that decode images")
@json_options
def command(
    model: str,
    images: ImageChoice,
    output: Path | None,
    best: bool,
    batch: int,
    threads: int,
    report: Report,
) -> None:
    """Measure the probe or fine-tuned model in RUN on the labeled images in DATA.

    RUN may be an imported classifier. Without DATA, the validation images of its recipe are used. The images must
    have the classifier's classes. An unreadable image is an error, since skipping it would change the accuracy.

    \b
    Examples:
      swav-tf validate runs/demo/probe_digits
      swav-tf validate runs/demo/finetune_digits --best
      swav-tf validate runs/released_probe ILSVRC2012/val --output runs/released_probe/val
    """
    load_tensorflow_quietly()
    from swav_tf.data.sources import validation_settings
    from swav_tf.runs.folder import epoch_in_words
    from swav_tf.training.classifier import load_classifier
    from swav_tf.training.validation import measure, write_results

    classifier = load_classifier(model, best=best)
    epoch = epoch_in_words(Path(model), classifier[1], best=best)
    own = classifier[1].data
    like = own if images.data is not None else validation_settings(own)
    opened = images.open(like)
    if output is not None:
        make_folder(output)
    settings = opened.settings.model_copy(update={"threads": threads})
    found, class_names = measure(classifier, opened.source, settings, batch_size=batch)
    figures = found.as_dict()
    number = len(opened.source)
    line = (
        f"{f'{epoch}: ' if epoch else ''}{number:,} images, {len(class_names):,} classes: "
        f"top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} %, loss {figures['loss']:.4f}"
    )
    report.show({"run": model, "epoch": epoch, "images": number, **figures}, [line])
    if output is not None:  # after the figures, which are printed even if these cannot be written
        title = f"{model}: top-1 {100 * figures['top1']:.1f} % of {number:,} images"
        write_results(output, found, class_names, title)
        if not report.as_json:
            click.echo(f"{output}: per_class.csv, confusion.csv, confusion.png")
