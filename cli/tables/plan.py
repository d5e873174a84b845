"""The estimate of a run on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swav_tf.planning.estimate import Plan


def print_plan(plan: Plan) -> None:
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
