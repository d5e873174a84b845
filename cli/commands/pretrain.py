"""`swav-tf pretrain`: the main job."""

from __future__ import annotations

from pathlib import Path

import click

from cli.closing import closing_words
from cli.options import (
    cluster_of,
    cluster_options,
    config_option,
    data_argument,
    json_option,
    override_option,
    print_json,
    quiet_option,
    run_dir_option,
)
from cli.quiet import load_tensorflow_quietly
from cli.recipes import load_for_run


@click.command(short_help="Train SwAV on images.")
@data_argument
@config_option
@override_option
@run_dir_option("Folder for checkpoints, metrics and summary.  [default: the recipe's name, inside runs/]")
@click.option(
    "--fresh", is_flag=True, help="Start over; the earlier run is kept in previous-N/.  [default: resume]"
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Start from the weights of this run folder, trained or imported.  [default: random weights]",
)
@cluster_options
@quiet_option
@json_option
def command(
    data: str | None,
    config: str,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    fresh: bool,
    weights: Path | None,
    nodes: int | None,
    node_rank: int | None,
    master: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train SwAV on the images in DATA: a folder, a pattern of TFRecord shards or a TFDS name.

    DATA may be left out where the recipe names its images. If the run folder holds a checkpoint,
    the run resumes from it. For several machines, start the same command on each: they are found
    from TF_CONFIG or SLURM, or from --nodes, --node-rank (each machine's own) and --master.

    \b
    Examples:
      swav-tf pretrain ILSVRC2012/train -c one_gpu --run-dir runs/first
      swav-tf pretrain photos/ -c one_gpu -o data.kind=images -o train.epochs=50
      swav-tf pretrain photos/ -c one_gpu --weights runs/released --run-dir runs/photos
      swav-tf pretrain -c demo --run-dir runs/digits -o train.epochs=2
      swav-tf pretrain ILSVRC2012/train -c passl_4nodes --nodes 4 --node-rank 0 --master 10.0.0.1:2222
    """
    recipe = load_for_run(config, overrides, data)
    cluster = cluster_of(nodes, node_rank, master)

    load_tensorflow_quietly()
    from swav_tf.training.pretrain import pretrain

    folder = run_dir or Path("runs") / recipe.name
    result = pretrain(
        recipe,
        run_dir=folder,
        cluster=cluster,
        fresh=fresh,
        weights=weights,
        quiet=quiet or as_json,
    )
    if as_json:
        print_json(result.summary)
    elif result.is_chief and not quiet:
        click.echo(closing_words(recipe, folder, result.summary), err=True)
