"""`swav-tf profile`: find the bottleneck of a recipe on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from cli.options import Report, count_option, report_options
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import RecipeChoice, recipe_options
from swav_tf.plumbing.names import counted

if TYPE_CHECKING:
    from rich.table import Table

    from swav_tf.training.profile.measure import Profile


@click.command()
@recipe_options
@count_option("--steps", least=2, default=10, help="Steps per measurement.")
@report_options
def command(recipe: RecipeChoice, steps: int, report: Report) -> None:
    """Run a few steps of a recipe and report its bottleneck: input, host or device.

    DATA is the same as for `swav-tf pretrain`. Without DATA, random JPEGs of ImageNet's typical size are used. Nothing
    is written to disk.

    \b
    Examples:
      swav-tf profile -c demo
      swav-tf profile ILSVRC2012/train -c one_gpu
      swav-tf profile -c swav_100ep -o train.batch_size=512 --json
    """
    settings = recipe.load()
    load_tensorflow_quietly()
    from swav_tf.training.profile.measure import profile

    found = profile(settings, steps=steps)
    if report.as_json:
        report.show(dataclasses.asdict(found))
        return
    print_profile(found)


def print_profile(profile: Profile) -> None:
    """Print what bounds the recipe, then the measurements behind it."""
    from rich.console import Console

    console = Console(highlight=False)
    p, batch = profile, profile.batch_size
    in_parts = f" in {p.accumulation_steps} parts" if p.accumulation_steps > 1 else ""
    console.print(
        f"[bold]{p.recipe}[/] on {p.replicas} {p.devices}{'s' if p.replicas > 1 else ''}, {p.cores} cores: "
        f"batch {batch}{in_parts}, {p.precision}; {p.images:,} images ({p.source})"
    )
    console.print(f"[bold]{p.verdict.sentence}[/]")

    console.print(_table(p))

    if p.load > p.cores / 2:
        console.print(
            f"[yellow]warning:[/] the machine was busy (load {p.load:.1f} on {p.cores} cores), so the measured times "
            "are too long. Repeat on an idle machine."
        )
    if p.memory_mb is not None:
        where = "of the fullest GPU" if p.devices == "GPU" else "of the process"
        console.print(f"peak memory: {p.memory_mb / 1000:.2f} GB {where}")
    console.print(
        f"complete recipe: {p.steps:,} steps, about [bold]{_duration(p.hours)}[/] without k-NN and checkpoints"
    )


def _table(p: Profile) -> Table:
    """Return the times of input, step and loop, and what they consist of."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("ms a step", "images/s"):
        table.add_column(heading, justify="right")
    table.add_column("")

    def row(name: str, ms: float, remark: str = "") -> None:
        table.add_row(name, f"{ms:,.1f}", f"{1000 * p.batch_size / ms:,.1f}" if ms else "", remark)

    def part(name: str, ms: float, total: float) -> None:
        table.add_row(f"  {name}", f"{ms:,.1f}", "", f"{100 * ms / total:.0f} %")

    makers = counted(p.processes, "process", "processes") if p.processes else counted(p.threads, "thread")
    rate = f"{makers}; {1000 / p.input_cpu_ms:,.0f} images per CPU second"
    row("input alone", 1000 * p.batch_size / p.input_images_per_second, rate)
    row("step alone", p.step.ms, f"± {100 * p.step.spread:.0f} %; crops are on the device already")
    tflops = f"; {p.tflops:.3g} TFLOP/s" if p.tflops is not None else ""
    row("loop", p.loop.ms, f"± {100 * p.loop.spread:.0f} %; as in training{tflops}")
    table.add_section()
    table.add_row("of the loop", "", "", "")
    part("waiting for crops", p.wait_ms, p.loop.ms)
    if p.devices == "GPU":
        part("host", p.host_ms, p.loop.ms)
    host_ms = p.host_ms if p.devices == "GPU" else 0.0
    rest = max(0.0, p.loop.ms - p.wait_ms - host_ms)
    network = min(rest, p.step.ms)
    part("network" if p.replicas == 1 else "network and communication", network, p.loop.ms)
    if rest > network:
        part("slower than the step alone", rest - network, p.loop.ms)
    return table


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"
