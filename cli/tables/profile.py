"""The profile of a recipe on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swav_tf.training.profile.measure import Profile


def print_profile(profile: Profile) -> None:
    """Print what bounds the recipe, then the measurements behind it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    p, batch = profile, profile.batch_size
    in_parts = f" in {p.accumulation_steps} parts" if p.accumulation_steps > 1 else ""
    console.print(
        f"[bold]{p.recipe}[/] on {p.replicas} {p.devices}{'s' if p.replicas > 1 else ''}, {p.cores} cores: "
        f"batch {batch}{in_parts}, {p.precision}; {p.images:,} images ({p.source})"
    )
    console.print(f"[bold]{p.verdict.sentence}[/]")

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("ms a step", "images/s"):
        table.add_column(heading, justify="right")
    table.add_column("")

    def row(name: str, ms: float, remark: str = "") -> None:
        table.add_row(name, f"{ms:,.1f}", f"{1000 * batch / ms:,.1f}" if ms else "", remark)

    makers = f"{p.processes} process(es)" if p.processes else f"{p.threads} thread(s)"
    row(
        "input alone",
        1000 * batch / p.input_images_per_second,
        f"{makers}; {1000 / p.input_cpu_ms:,.0f} images a CPU second",
    )
    row("step alone", p.step.ms, f"± {100 * p.step.spread:.0f} %; crops are there already")
    tflops = f"; {p.tflops:.3g} TFLOP/s" if p.tflops is not None else ""
    row("loop", p.loop.ms, f"± {100 * p.loop.spread:.0f} %; as in training{tflops}")
    table.add_section()
    table.add_row("of the loop", "", "", "")
    table.add_row("  waiting for crops", f"{p.wait_ms:,.1f}", "", _share(p.wait_ms, p.loop.ms))
    if p.devices == "GPU":
        table.add_row("  host", f"{p.host_ms:,.1f}", "", _share(p.host_ms, p.loop.ms))
    if p.exchange is not None:
        exchanged = f"{p.exchange.collectives} collectives, {p.exchange.megabytes:.3g} MB a replica"
        if p.communication_ms is None:
            table.add_row("  communication", "-", "", f"{exchanged}; not told apart in parts of a batch")
        else:
            together = "; on one CPU replicas share the cores" if p.devices == "CPU" else ""
            share = _share(p.communication_ms, p.loop.ms)
            table.add_row(
                "  communication", f"{p.communication_ms:,.1f}", "", f"{share}: {exchanged}{together}"
            )
    table.add_section()
    table.add_row(f"step of {p.part_images} images", "", "", "on one replica, the quickest")
    whole = sum(part.ms for part in p.parts) or 1.0
    for part in p.parts:
        table.add_row(f"  {part.name}", f"{part.ms:,.1f}", "", _share(part.ms, whole))
    console.print(table)

    if p.load > p.cores / 2:
        console.print(
            f"[yellow]warning[/] the machine was busy (load {p.load:.1f} on {p.cores} cores): figures are too slow."
        )
    if p.memory is not None:
        if p.memory.on_gpu:
            console.print(f"memory: {p.memory.peak_mb / 1000:.2f} GB of the fullest GPU at its peak")
        else:
            console.print(
                f"memory: {p.memory.peak_mb / 1000:.2f} GB at its peak, of it {p.memory.before_mb / 1000:.2f} GB "
                "before there is a model"
            )
    if p.largest_batch is not None:
        kind = "estimated from two batches" if p.largest_batch.estimated else "found by trying"
        console.print(f"largest batch: {p.largest_batch.images:,} images on a device at once ({kind})")
    console.print(
        f"the whole recipe: {p.steps:,} steps, about [bold]{_duration(p.hours)}[/] (no k-NN, no checkpoints)"
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"
