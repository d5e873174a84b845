"""The estimate of a run on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from swav_tf.planning.estimate import Plan


def print_plan(plan: Plan) -> None:
    """Print what the run needs, how long it takes at each pace, and the assumptions."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    cluster, cost, memory, links = plan.cluster, plan.cost, plan.memory, plan.communication
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
    console.print(facts)

    console.print(_paces(plan))
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {warning}.")
    console.print("assumptions:")
    for assumption in plan.assumptions:
        console.print(f"  - {assumption}")


def _flops(count: float) -> str:
    return f"{count / 1e12:,.0f} TFLOP" if count >= 1e13 else f"{count / 1e9:,.1f} GFLOP"


def _paces(plan: Plan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("pace")
    for pace in plan.paces:
        table.add_column(pace.name, justify="right")
    for name, values in (
        (
            "images/s",
            [f"{p.images_per_second:,.0f}, {p.images_per_second_gpu:,.0f} per GPU" for p in plan.paces],
        ),
        ("step", [f"{p.step_ms:,.0f} ms" for p in plan.paces]),
        ("  communication", [f"{100 * p.communication_share:.0f} %" for p in plan.paces]),
        ("complete run", [f"{p.hours:,.1f} hours" for p in plan.paces]),
        ("", [f"{p.gpu_hours:,.0f} GPU hours" for p in plan.paces]),
        ("input per machine", [f"{p.node_images_per_second:,.0f} images/s" for p in plan.paces]),
        ("  cores to decode and crop", [f"{p.node_cpu_cores:,.1f}" for p in plan.paces]),
        ("  JPEGs from disk or network", [f"{p.node_jpeg_megabytes:,.0f} MB/s" for p in plan.paces]),
        ("  crops to the GPUs", [f"{p.node_crop_megabytes:,.0f} MB/s" for p in plan.paces]),
    ):
        table.add_row(name, *values)
    return table
