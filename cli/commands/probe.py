"""`swav-tf probe`: train a linear classifier on frozen features."""

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
        show_default="`probe`, with the pretraining run's images and evaluation view",
    )
)
@click.option(
    "--cached/--sgd",
    default=None,
    show_default="--cached without -c, --sgd with it",
    help="--cached: compute the features once, then fit logistic regression (L-BFGS) to convergence; the penalty is "
    "chosen on held-out training images. --sgd: train on augmented crops, as in the published protocol.",
)
def command(
    classifier: ClassifierChoice, cluster: ClusterAddress | None, report: Report, cached: bool | None
) -> None:
    """Measure a pretrained backbone with a linear classifier on its frozen features.

    TRAIN and VALIDATION are folders of labeled images, with one folder per class. They may be omitted if the recipe
    or the pretraining run names both. Without -c, features are computed once and a logistic regression is fitted to
    convergence. To reproduce published figures, which use SGD, choose a `probe*` recipe. An SGD run resumes if the run
    folder contains a checkpoint.

    \b
    Examples:
      swav-tf probe --model runs/demo
      swav-tf probe photos/train photos/val --model runs/photos
      swav-tf probe --model runs/demo -c probe_digits
      swav-tf probe ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c probe --run-dir runs/probe
    """
    from swav_tf.recipe.classifier import ProbeRecipe

    recipe = classifier.load(ProbeRecipe)
    if cached is None:
        cached = classifier.config is None
    if cached and cluster is not None:
        raise click.UsageError(
            "--cached runs on one machine: use --sgd, or omit --nodes, --node-rank and --master."
        )
    load_tensorflow_quietly()
    if cached:
        from swav_tf.training.cached_probe import probe_cached

        arguments = classifier.arguments(f"{recipe.name}_cached")
        result = probe_cached(recipe, quiet=report.quiet, **arguments)
    else:
        from swav_tf.training.classify import probe

        arguments = classifier.arguments(recipe.name)
        result = probe(recipe, cluster=cluster, quiet=report.quiet, **arguments)
    show_result(report, recipe, result)
