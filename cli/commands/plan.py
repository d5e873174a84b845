"""`swav-tf plan`: estimate the cost of a run by arithmetic."""

from __future__ import annotations

import dataclasses

import click

from cli.options import Report, amount_option, count_option, json_options, option_group
from cli.recipe_options import RecipeChoice, override_option
from swav_tf.planning.gpus import GPUS, Cluster, Gpu, own_gpu


def _gpu(context: click.Context, option: click.Parameter, value: str) -> Gpu:
    """Return a GPU by its name, or by its figures."""
    if value in GPUS:
        return GPUS[value]
    try:
        memory, tflops, bandwidth = (float(figure) for figure in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"must be {', '.join(GPUS)}, or MEMORY,TFLOPS,BANDWIDTH, such as 12,51,360. Received: {value}"
        ) from None
    if min(memory, tflops, bandwidth) <= 0:
        raise click.BadParameter(f"must have figures greater than 0. Received: {value}")
    return own_gpu(memory_gb=memory, tflops=tflops, bandwidth_gb=bandwidth)


@click.command()
@option_group(
    "recipe",
    lambda config, overrides: RecipeChoice(None, config, overrides),
    click.argument("config", metavar="FILE_OR_NAME"),
    override_option,
)
@click.option(
    "--gpu",
    callback=_gpu,
    required=True,
    metavar="GPU",
    help=f"{', '.join(GPUS)}; or MEMORY,TFLOPS,BANDWIDTH: GB, dense peak in the recipe's precision, GB/s.",
)
@count_option("--gpus", default=1, help="Total number of GPUs.")
@count_option("--gpus-per-node", default=8, help="GPUs per machine.")
@amount_option(
    "--link-gbit", metavar="GBIT", default=200, help="Network speed of a machine per direction, Gbit/s."
)
@count_option(
    "--images",
    show_default="the recipe's data; without any ImageNet's 1,281,167",
    help="Number of training images.",
)
@amount_option(
    "--images-per-second",
    metavar="RATE",
    show_default="an estimate",
    help="Speed of one GPU as measured by `swav-tf profile`, images/s.",
)
@json_options
def command(
    recipe: RecipeChoice,
    gpu: Gpu,
    gpus: int,
    gpus_per_node: int,
    link_gbit: float,
    images: int | None,
    images_per_second: float | None,
    report: Report,
) -> None:
    """Estimate duration, memory and network load of a pretraining run, and list the assumptions.

    Nothing is measured and TensorFlow is not needed. To measure on this machine, use `swav-tf profile`.

    \b
    Examples:
      swav-tf plan swav_800ep --gpus 32 --gpu a100
      swav-tf plan one_gpu --gpu rtx4090 --images 50000 -o train.epochs=400
      swav-tf plan demo --gpu 12,51,360
      swav-tf plan swav_200ep --gpus 64 --gpu h100 --images-per-second 1100 --json
    """
    from swav_tf.planning.estimate import make_plan

    plan = make_plan(
        recipe.load(),
        Cluster(gpu, gpus, gpus_per_node, link_gbit),
        images=images,
        images_per_second=images_per_second,
    )
    if report.as_json:
        document = dataclasses.asdict(plan)
        document["memory"]["fits"] = plan.memory.fits
        document["cluster"]["nodes"] = plan.cluster.nodes
        document["memory"]["usable"] = plan.memory.usable
        document["cost"]["forward_macs"] = plan.cost.forward_macs
        report.show(document)
        return
    from cli.tables.plan import print_plan

    print_plan(plan)
