"""`swav-tf probe`: a linear classifier on frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.classifier_options import ClassifierChoice, classifier_options
from cli.options import Report
from cli.quiet import load_tensorflow_quietly

if TYPE_CHECKING:
    from swav_tf.training.rendezvous import ClusterAddress


@click.command()
@classifier_options
@click.option(
    "--cached",
    is_flag=True,
    help="Compute the features once and fit logistic regression by L-BFGS, with the penalty chosen on held-out "
    "training images.",
)
def command(
    classifier: ClassifierChoice, cluster: ClusterAddress | None, report: Report, cached: bool
) -> None:
    """Measure a pretrained backbone by a linear classifier on its frozen features.

    TRAIN and VALIDATION are labelled images: folders with one folder per class. They may be omitted if the recipe
    names its images. If the run folder contains a checkpoint, the run resumes from it.

    \b
    Examples:
      swav-tf probe --model runs/demo -c probe_digits
      swav-tf probe --model runs/demo -c probe_digits --cached
      swav-tf probe ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c probe --run-dir runs/probe
    """
    from swav_tf.recipe.classifier import ProbeRecipe

    recipe = classifier.load(ProbeRecipe)
    if cached and cluster is not None:
        raise click.UsageError("--cached runs on one machine: omit --nodes, --node-rank and --master.")
    load_tensorflow_quietly()
    if cached:
        from swav_tf.training.cached_probe import probe_cached

        arguments = classifier.arguments(f"{recipe.name}_cached")
        result = probe_cached(recipe, quiet=report.quiet, **arguments)
    else:
        from swav_tf.training.classify import probe

        arguments = classifier.arguments(recipe.name)
        result = probe(recipe, cluster=cluster, quiet=report.quiet, **arguments)
    report.show(result.summary)
