"""`swav-tf finetune`: train backbone and classifier on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.classifier_options import ClassifierChoice, classifier_options
from cli.options import Report
from cli.quiet import load_tensorflow_quietly

if TYPE_CHECKING:
    from swav_tf.training.rendezvous import ClusterAddress


@click.command()
@classifier_options
def command(
    classifier: ClassifierChoice,
    run_dir: Path | None,
    fresh: bool,
    cluster: ClusterAddress | None,
    report: Report,
) -> None:
    """Train a pretrained backbone and a classifier on top of it, each with its own learning rate.

    TRAIN and VALIDATION are labelled images: folders with one folder per class. They may be omitted if the recipe
    names its images. If the run folder contains a checkpoint, the run resumes from it.

    \b
    Examples:
      swav-tf finetune --model runs/demo -c finetune_digits
      swav-tf finetune --model runs/demo -c finetune_digits --from-scratch
      swav-tf finetune ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c finetune_full
    """
    from swav_tf.recipe.classifier import FinetuneRecipe

    recipe = classifier.load(FinetuneRecipe)
    load_tensorflow_quietly()
    from swav_tf.training.classify import finetune

    result = finetune(
        recipe,
        model=classifier.model,
        run_dir=run_dir or classifier.default_run_dir(recipe.name),
        from_scratch=classifier.from_scratch,
        cluster=cluster,
        fresh=fresh,
        quiet=report.quiet,
    )
    report.show(result.summary)
