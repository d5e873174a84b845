"""`swav-tf finetune`: train backbone and classifier on labelled images."""

from __future__ import annotations

from typing import Any

import click

from cli.classification import asked_for, classification_options
from cli.options import print_json
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Train a pretrained network on labelled images.")
@classification_options
def command(**options: Any) -> None:
    """Train a pretrained backbone and a classifier on it, each with its own learning rate.

    TRAIN and VALIDATION are labelled images: folders with one folder per class. They may be left
    out where the recipe names its images. If the run folder holds a checkpoint, the run resumes from it.

    \b
    Examples:
      swav-tf finetune --model runs/demo -c finetune_digits
      swav-tf finetune --model runs/demo -c finetune_digits --from-scratch
      swav-tf finetune ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c finetune_full
    """
    from swav_tf.recipe.classifier import FinetuneRecipe

    recipe, arguments = asked_for(FinetuneRecipe, **options)

    load_tensorflow_quietly()
    from swav_tf.training.finetune import finetune

    result = finetune(recipe, **arguments)
    if options["as_json"]:
        print_json(result.summary)
