"""`swav-tf finetune`: train backbone and classifier on labeled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.closing import show_result
from cli.options import Report
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import ClassifierChoice, classifier_options, config_option

if TYPE_CHECKING:
    from swav_tf.training.rendezvous import ClusterAddress


@click.command()
@classifier_options(
    config_option(
        required=False,
        show_default="`finetune`, with the pretraining run's images, evaluation view and flips",
    )
)
def command(classifier: ClassifierChoice, cluster: ClusterAddress | None, report: Report) -> None:
    """Train a pretrained backbone and a classifier on top of it, each with its own learning rate.

    TRAIN and VALIDATION are labeled images: folders with one folder per class. They may be omitted if the recipe
    or the pretraining run names both. Without -c, the classifier is initialized from a converged probe (as `swav-tf
    probe` fits it), and low learning rates preserve what the backbone has learned. If the run folder contains a
    checkpoint, the run resumes from it.

    \b
    Examples:
      swav-tf finetune photos/train photos/val --model runs/auto-photos
      swav-tf finetune --model runs/demo -c finetune_digits
      swav-tf finetune --model runs/demo -c finetune_digits --from-scratch
      swav-tf finetune ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c finetune_full
    """
    from swav_tf.recipe.advice import FEWEST_STEPS
    from swav_tf.recipe.classifier import FinetuneRecipe

    if classifier.config is None and classifier.from_scratch:
        raise click.UsageError(
            "--from-scratch needs a recipe, -c: the default's low rates are for pretrained backbones."
        )
    recipe = classifier.load(FinetuneRecipe)
    # Few images need more epochs than the recipe's, unless these were asked for.
    least_steps = 0 if classifier.sets("train.epochs", "optimizer.decay_epochs") else FEWEST_STEPS
    load_tensorflow_quietly()
    from swav_tf.training.classify import finetune

    arguments = classifier.arguments(recipe.name)
    result = finetune(recipe, cluster=cluster, quiet=report.quiet, least_steps=least_steps, **arguments)
    show_result(report, recipe, result)
