"""`swav-tf plan`: estimate the cost of a run by arithmetic."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from cli.options import Report, amount_option, count_option, json_options, option_group
from cli.recipe_options import RecipeChoice, override_option
from swav_tf.planning.gpus import GPUS, Cluster, Gpu, own_gpu

if TYPE_CHECKING:
    from swav_tf.planning.estimate import Plan


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
    help=f"{', '.join(GPUS)}; or MEMORY,TFLOPS,BANDWIDTH in GB, TFLOP/s (dense peak at the recipe's precision) and "
    "GB/s.",
)
@count_option("--gpus", default=1, help="Total number of GPUs.")
@count_option("--gpus-per-node", default=8, help="GPUs per machine.")
@amount_option(
    "--link-gbit", metavar="GBIT", default=200, help="Network speed of a machine per direction, Gbit/s."
)
@count_option(
    "--images",
    show_default="counted from the recipe's data; ImageNet's 1,281,167 if it names none",
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
    _print(plan)


def _print(plan: Plan) -> None:
    """Print what the run needs, how long it takes, and the assumptions."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    cluster, cost, memory, links = plan.cluster, plan.cost, plan.memory, plan.communication
    pace = plan.pace
    where = f" in {cluster.nodes} machines" if cluster.nodes > 1 else ""
    console.print(
        f"[bold]{plan.recipe}[/] on {cluster.gpus} x {cluster.gpu.name}{where}: {plan.images:,} images, "
        f"{plan.epochs} epochs, {plan.steps:,} steps of {plan.batch_size:,} images, {plan.precision}"
    )
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row(
        "arithmetic",
        f"{cost.backbone_macs / 1e9:.2f} GMAC per image forward (head and prototypes {cost.head_macs / 1e9:.2f}), "
        f"{plan.image_flops / 1e9:.1f} GFLOP per image and "
        f"{_flops(plan.step_flops)} per step; {cost.parameters / 1e6:.1f} million parameters",
    )
    in_parts = f", in {plan.accumulation_steps} parts" if plan.accumulation_steps > 1 else ""
    facts.add_row(
        "memory",
        f"{memory.total:.1f} of {memory.usable:.1f} usable GB ({memory.available:g} GB) "
        f"with {plan.replica_batch} images at once{in_parts}: "
        f"activations {memory.activations:.1f}, weights {memory.weights:.1f}, momentum {memory.momentum:.1f}, "
        f"gradients {memory.gradients:.1f}, rest {memory.rest:.1f}; at most about {memory.largest_batch} images fit",
    )
    facts.add_row(
        "communication",
        f"{links.collectives} collectives and {links.megabytes:.0f} MB per step: {links.transfer_ms:.0f} ms of "
        f"transfer, {links.latency_ms:.0f} ms of latency"
        if links.collectives
        else "none: one GPU",
    )
    facts.add_row("checkpoint", f"{plan.checkpoint_megabytes:,.0f} MB each")
    facts.add_row(
        "speed",
        f"{pace.images_per_second:,.0f} images/s, {pace.images_per_second_gpu:,.0f} per GPU; {pace.step_ms:,.0f} ms a "
        f"step, {100 * pace.communication_share:.0f} % of it communication",
    )
    facts.add_row("complete run", f"{pace.hours:,.1f} hours, {pace.gpu_hours:,.0f} GPU hours")
    facts.add_row(
        "input per machine",
        f"{pace.node_images_per_second:,.0f} images/s: {pace.node_cpu_cores:,.1f} cores to decode and crop, "
        f"{pace.node_jpeg_megabytes:,.0f} MB/s of JPEGs from disk or network, "
        f"{pace.node_crop_megabytes:,.0f} MB/s of crops to the GPUs",
    )
    console.print(facts)
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {warning}.")
    console.print("assumptions:")
    for assumption in plan.assumptions:
        console.print(f"  - {assumption}")


def _flops(count: float) -> str:
    return f"{count / 1e12:,.0f} TFLOP" if count >= 1e13 else f"{count / 1e9:,.1f} GFLOP"
