"""`swav-tf probe`: a linear classifier on frozen features."""

from __future__ import annotations

from typing import Any

import click

from cli.classification import asked_for, classification_options
from cli.options import print_json
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Train a linear classifier on frozen features.")
@classification_options
@click.option(
    "--cached",
    is_flag=True,
    help="Compute the features once and fit by L-BFGS, the penalty chosen on held-out training images.",
)
def command(**options: Any) -> None:
    """Measure a pretrained backbone by a linear classifier on its frozen features.

    TRAIN and VALIDATION are labelled images: folders with one folder per class. They may be left
    out where the recipe names its images. If the run folder holds a checkpoint, the run resumes from it.

    \b
    Examples:
      swav-tf probe --model runs/demo -c probe_digits
      swav-tf probe --model runs/demo -c probe_digits --cached
      swav-tf probe ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c probe --run-dir runs/probe
    """
    from swav_tf.recipe.classifier import ProbeRecipe

    recipe, arguments = asked_for(ProbeRecipe, **options)

    load_tensorflow_quietly()
    from swav_tf.training.probe import probe, probe_cached

    result = probe_cached(recipe, **arguments) if options["cached"] else probe(recipe, **arguments)
    if options["as_json"]:
        print_json(result.summary)
