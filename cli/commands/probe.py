"""`swav-tf probe`: a linear classifier on frozen features."""

from __future__ import annotations

from pathlib import Path

import click

from cli.classification import classification_options, load_for_classification, run_dir_of
from cli.cluster import cluster_of
from cli.options import print_json
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Train a linear classifier on frozen features.")
@classification_options
@click.option(
    "--cached",
    is_flag=True,
    help="Compute the features once and fit by L-BFGS, the penalty chosen on held-out training images.",
)
def command(
    train: str | None,
    validation: str | None,
    model: str,
    config: str,
    overrides: tuple[str, ...],
    subset: Path | None,
    from_scratch: bool,
    run_dir: Path | None,
    fresh: bool,
    nodes: int | None,
    node_rank: int | None,
    master: str | None,
    quiet: bool,
    as_json: bool,
    cached: bool,
) -> None:
    """Measure a pretrained backbone by a linear classifier on its frozen features.

    TRAIN and VALIDATION are labelled images: folders with one folder a class. They may be left
    out where the recipe names its images. A run folder with a checkpoint is gone on with.

    \b
    Examples:
      swav-tf probe --model runs/demo -c probe_digits
      swav-tf probe --model runs/demo -c probe_digits --cached
      swav-tf probe ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c probe --run-dir runs/probe
    """
    from swav_tf.classifier_recipe import ProbeRecipe

    recipe = load_for_classification(
        ProbeRecipe, config, overrides, train=train, validation=validation, subset=subset
    )
    cluster = cluster_of(nodes, node_rank, master)
    if cached and cluster is not None:
        raise click.UsageError("--cached runs on one machine: leave --nodes, --node-rank and --master out.")
    folder = run_dir_of(run_dir, model=model, name=recipe.name, from_scratch=from_scratch, cached=cached)

    load_tensorflow_quietly()
    from swav_tf.training.linear_probe import probe, probe_cached

    quiet = quiet or as_json
    if cached:
        result = probe_cached(
            recipe, model=model, run_dir=folder, from_scratch=from_scratch, fresh=fresh, quiet=quiet
        )
    else:
        result = probe(
            recipe,
            model=model,
            run_dir=folder,
            from_scratch=from_scratch,
            cluster=cluster,
            fresh=fresh,
            quiet=quiet,
        )
    if as_json:
        print_json(result.summary)
