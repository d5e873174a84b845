"""`swav-tf plan`: what a run would cost, from arithmetic alone."""

from __future__ import annotations

import dataclasses

import click

from cli.options import json_option, override_option, print_json
from cli.recipes import load

# The names of swav_tf/planning/gpus.py, written again so that `--help` is quick; a test compares them.
GPU_NAMES = ("v100", "a100", "a100-40", "h100", "h200", "l4", "t4", "rtx4090")


@click.command(short_help="Estimate hours, memory and links of a run on other machines.")
@click.argument("recipe", metavar="FILE_OR_NAME")
@override_option
@click.option(
    "--gpu", type=click.Choice(GPU_NAMES), required=True, help="Kind of GPU; a100 has 80 GB, a100-40 has 40."
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="GPUs over all machines.",
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=1),
    metavar="N",
    default=8,
    show_default=True,
    help="GPUs of one machine.",
)
@click.option(
    "--link-gbit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GBIT",
    default=200,
    show_default=True,
    help="Network of one machine in each direction, Gbit/s.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training images.  [default: ImageNet's 1,281,167]",
)
@click.option(
    "--images-per-second",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATE",
    help="Of one GPU, as `swav-tf profile` measured it, instead of an estimate.",
)
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    gpu: str,
    gpus: int,
    gpus_per_node: int,
    link_gbit: float,
    images: int | None,
    images_per_second: float | None,
    as_json: bool,
) -> None:
    """Estimate a pretraining run from FLOPs, bytes and links; the assumptions are printed with it.

    Nothing is measured and TensorFlow is not needed: for figures of this machine there is `swav-tf profile`.

    \b
    Examples:
      swav-tf plan swav_800ep --gpus 32 --gpu a100
      swav-tf plan one_gpu --gpu rtx4090 --images 50000 -o train.epochs=400
      swav-tf plan swav_200ep --gpus 64 --gpu h100 --images-per-second 1100 --json
    """
    from swav_tf.planning.estimate import GPUS, IMAGENET_IMAGES, Cluster, make_plan

    plan = make_plan(
        load(recipe, overrides),
        Cluster(GPUS[gpu], gpus, gpus_per_node, link_gbit),
        images=images or IMAGENET_IMAGES,
        images_per_second=images_per_second,
    )
    if as_json:
        fits = {"fits": plan.memory.fits}
        document = dataclasses.asdict(plan)
        document["memory"] |= fits
        document["cluster"]["nodes"] = plan.cluster.nodes
        document["cost"] |= {"forward_macs": plan.cost.forward_macs, "step_flops": plan.cost.step_flops}
        print_json(document)
        return
    from cli.tables.plan import print_plan

    print_plan(plan)
