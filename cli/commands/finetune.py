"""`swav-tf finetune`: train backbone and classifier on labelled images."""

from __future__ import annotations

from pathlib import Path

import click

from cli.classification import classification_options, load_for_classification, run_dir_of
from cli.cluster import cluster_of
from cli.options import print_json
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Train a pretrained network on labelled images.")
@classification_options
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
) -> None:
    """Train a pretrained backbone and a classifier on it, each with its own learning rate.

    TRAIN and VALIDATION are labelled images: folders with one folder a class. They may be left
    out where the recipe names its images. A run folder with a checkpoint is gone on with.

    \b
    Examples:
      swav-tf finetune --model runs/demo -c finetune_digits
      swav-tf finetune --model runs/demo -c finetune_digits --from-scratch
      swav-tf finetune ILSVRC2012/train ILSVRC2012/val --model runs/swav_800ep -c finetune_full
    """
    from swav_tf.classifier_recipe import FinetuneRecipe

    recipe = load_for_classification(
        FinetuneRecipe, config, overrides, train=train, validation=validation, subset=subset
    )
    cluster = cluster_of(nodes, node_rank, master)
    folder = run_dir_of(run_dir, model=model, name=recipe.name, from_scratch=from_scratch)

    load_tensorflow_quietly()
    from swav_tf.training.finetune import finetune

    result = finetune(
        recipe,
        model=model,
        run_dir=folder,
        from_scratch=from_scratch,
        cluster=cluster,
        fresh=fresh,
        quiet=quiet or as_json,
    )
    if as_json:
        print_json(result.summary)
