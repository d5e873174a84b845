"""`swav-tf plan`: the cost of a run, from arithmetic alone."""

from __future__ import annotations

import dataclasses

import click

from cli.options import Report, amount_option, count_option, json_options, option_group
from cli.recipe_options import RecipeChoice, override_option
from swav_tf.planning.gpus import GPUS, Cluster, Gpu, own_gpu


@click.command()
@option_group(
    "recipe",
    lambda config, overrides: RecipeChoice(None, config, overrides),
    click.argument("config", metavar="FILE_OR_NAME"),
    override_option,
)
@click.option(
    "--gpu",
    type=click.Choice(tuple(GPUS)),
    help="Type of GPU; a100 has 80 GB, a100-40 has 40 GB.",
)
@amount_option("--gpu-memory", metavar="GB", help="GPU that is not listed: memory, GB.")
@amount_option(
    "--gpu-tflops", metavar="TFLOPS", help="GPU that is not listed: dense peak in the recipe's precision."
)
@amount_option("--gpu-bandwidth", metavar="GB/S", help="GPU that is not listed: memory bandwidth, GB/s.")
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
    gpu: str | None,
    gpu_memory: float | None,
    gpu_tflops: float | None,
    gpu_bandwidth: float | None,
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
      swav-tf plan demo --gpu-memory 12 --gpu-tflops 51 --gpu-bandwidth 360
      swav-tf plan swav_200ep --gpus 64 --gpu h100 --images-per-second 1100 --json
    """
    from swav_tf.planning.estimate import make_plan

    plan = make_plan(
        recipe.load(),
        Cluster(_gpu(gpu, gpu_memory, gpu_tflops, gpu_bandwidth), gpus, gpus_per_node, link_gbit),
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


def _gpu(name: str | None, memory: float | None, tflops: float | None, bandwidth: float | None) -> Gpu:
    own = [value for value in (memory, tflops, bandwidth) if value is not None]
    if name is not None and not own:
        return GPUS[name]
    if name is not None or memory is None or tflops is None or bandwidth is None:
        raise click.UsageError(
            "Specify the GPU by --gpu, or by all of --gpu-memory, --gpu-tflops and --gpu-bandwidth."
        )
    return own_gpu(memory_gb=memory, tflops=tflops, bandwidth_gb=bandwidth)
