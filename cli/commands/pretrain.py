"""`swav-tf pretrain`: train SwAV on images."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.closing import show_result
from cli.node_workers import node_workers
from cli.options import (
    PATH,
    Report,
    cluster_options,
    count_option,
    fresh_option,
    report_options,
    run_dir_option,
)
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import RecipeChoice, auto_recipe_options, track_option

if TYPE_CHECKING:
    from swav_tf.method.swav import SwAV
    from swav_tf.recipe.pretraining import Recipe
    from swav_tf.training.job import Result
    from swav_tf.training.rendezvous import ClusterAddress


@click.command()
@auto_recipe_options
@run_dir_option("Folder for checkpoints, metrics and summary.", show_default="runs/<name of the recipe>")
@fresh_option
@click.option(
    "--weights",
    type=PATH,
    metavar="RUN",
    show_default="random weights",
    help="Initialize from the weights of this run folder, trained or imported.",
)
@track_option
@cluster_options
@count_option(
    "--workers-per-node",
    default=1,
    help="Number of worker processes per machine; they share its GPUs and cores equally.",
)
@report_options
def command(
    recipe: RecipeChoice,
    run_dir: Path | None,
    fresh: bool,
    weights: Path | None,
    track: tuple[str, ...],
    cluster: ClusterAddress | None,
    workers_per_node: int,
    report: Report,
) -> None:
    """Train SwAV on the images in DATA: a folder, an archive, a list, a glob pattern of shards, or a TFDS name.

    Without -c, a recipe is chosen for the images and this machine, logged, and saved in the run folder. If this run
    collapses, it starts over with the next remedy, at most three times. DATA may be omitted if the recipe names its
    images. If the run folder contains a checkpoint, the run resumes.

    To use several machines, start the same command on each. Their addresses come from TF_CONFIG, SLURM, or --nodes,
    --node-rank (different on each machine) and --master.

    \b
    Examples:
      swav-tf pretrain photos/
      swav-tf pretrain photos/ -o train.epochs=50
      swav-tf pretrain ILSVRC2012/train -c one_gpu --run-dir runs/first
      swav-tf pretrain photos/ -c one_gpu --weights runs/released --run-dir runs/photos
      swav-tf pretrain photos/ --track tensorboard,mlflow
      swav-tf pretrain ILSVRC2012/train -c my_8gpus.yaml --workers-per-node 8
      swav-tf pretrain ILSVRC2012/train -c passl_4nodes --nodes 4 --node-rank 0 --master 10.0.0.1:2222
    """
    from swav_tf.training.rendezvous import described_workers

    if recipe.is_auto and (cluster is not None or max(workers_per_node, described_workers(os.environ)) > 1):
        raise click.UsageError(
            "Several workers need one recipe, and -c auto chooses one for each machine. Write it once, "
            "`swav-tf config auto DATA > FILE.yaml`, and pass -c FILE.yaml on all."
        )
    from swav_tf.training.tracking import check_installed

    recipe = replace(recipe, overrides=(*recipe.overrides, *track))
    settings = recipe.load_for(run_dir, fresh=fresh)
    check_installed(settings.monitor.track)
    folder = run_dir or Path("runs") / settings.name
    options: dict[str, Any] = {"fresh": fresh, "weights": weights, "quiet": report.quiet}
    if recipe.is_auto:
        load_tensorflow_quietly()
        from swav_tf.training.rescue import pretrain_with_rescue

        kept = [override.split("=", 1)[0] for override in recipe.overrides]
        result = pretrain_with_rescue(settings, run_dir=folder, keep=kept, **options)
    else:
        train = partial(_train, settings, folder, options)
        with node_workers(workers_per_node, cluster, train) as place:
            load_tensorflow_quietly()
            result = train(place)
    show_result(report, settings, result)


def _train(
    settings: Recipe, folder: Path, options: dict[str, Any], cluster: ClusterAddress | None
) -> Result[SwAV]:
    from swav_tf.training.pretrain import pretrain

    return pretrain(settings, run_dir=folder, cluster=cluster, **options)
