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
        show_default="the settings of `probe`, with the run's images and their view at evaluation",
    )
)
@click.option(
    "--cached/--sgd",
    default=None,
    show_default="--cached without -c, --sgd with it",
    help="Cached: compute the features once and fit the converged classifier, logistic regression by L-BFGS, with "
    "the penalty chosen on held-out training images. SGD: train on crops, the published protocol.",
)
def command(
    classifier: ClassifierChoice, cluster: ClusterAddress | None, report: Report, cached: bool | None
) -> None:
    """Measure a pretrained backbone with a linear classifier on its frozen features.

    TRAIN and VALIDATION are folders of labeled images, with one folder per class. They may be omitted if the recipe
    or the pretraining run names both. Without -c, the classifier is fitted to features in memory until it converges.
    Published figures use SGD: the recipes `probe*`. SGD resumes if the run folder contains a checkpoint.

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
