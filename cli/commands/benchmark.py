"""`swav-tf benchmark`: measure the speed of exported files and runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    NEW_FILE,
    PATH,
    Output,
    amount_option,
    count_option,
    counts,
    names,
    quiet_option,
    threads_option,
)
from cli.tables import benchmark_lines
from swav_tf.plumbing.log import show_log

if TYPE_CHECKING:
    from evaluate.benchmark.schema import Benchmark, Cell

SETTINGS = ("seconds", "runs", "threads", "cuda_graph")


def _limits(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> list[tuple[str, float]]:
    """Return cells and the images/s that they must reach."""
    found = [re.fullmatch(r"([\w-]+:\w+:\d+)=(\d+(?:\.\d*)?(?:e[-+]?\d+)?)", value) for value in values]
    for value, match in zip(values, found, strict=True):
        if match is None:
            raise click.BadParameter(
                f"must be RUNNER:PRECISION:BATCH=IMAGES_PER_SECOND, such as ort-cpu:fp32:32=10. Received: {value}"
            )
    return [(match[1], float(match[2])) for match in found if match]


# fmt: off
@click.command()
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@click.option("--runner", "runners", callback=names, metavar="NAME,...", show_default="all that can run a MODEL here",
              help="ort-cpu, openvino-cpu, ort-cuda, ort-tensorrt, tensorrt, keras.")
@click.option("--precision", "precisions", callback=names, metavar="NAME,...", show_default="all that MODEL has",
              help="fp32, fp16, int8.")
@click.option("--batch", "batches", callback=counts, metavar="N,...", default="1,8,32,128", help="Images per batch.")
@click.option("--json", "json_file", type=Output(dir_okay=False, allow_dash=True), metavar="FILE",
              help="Write all figures to FILE after each cell; unlike --json of other commands, it takes a FILE, and "
              "`-` is stdout, at the end.")
@click.option("--html", "html_file", type=NEW_FILE, metavar="FILE",
              help="Write a report with charts to FILE: one page, readable offline.")
@amount_option("--seconds", metavar="SECONDS", default=3.0, help="Minimum time per cell.")
@count_option("--runs", default=100, help="Minimum runs per cell, within a minute; a p99 needs 1000.")
@threads_option("Threads that compute a batch on a CPU")
@click.option("--cuda-graph/--no-cuda-graph", default=True,
              help="On a GPU, launch all kernels of a run as one CUDA graph.")
@click.option("--fail-below", "limits", callback=_limits, multiple=True, metavar="CELL=X",
              help="Exit with code 1 if CELL is slower than X images/s or was not measured, for example "
              "ort-cpu:fp32:32=10. May be repeated.")
@quiet_option
def command(quiet: bool, limits: list[tuple[str, float]], **options: Any) -> int:
    """Measure images/s and latency of MODELs: folders or files written by `swav-tf export`, or run folders (in Keras).

    Third-party ONNX files of image networks are measured too, with all their outputs.

    Each cell (model, runner, precision, batch) runs in a fresh process. A cell that cannot run on this machine (a GPU
    runner without a GPU, for example) is skipped, with the reason. If nothing was measured, the exit code is 1.
    Accuracy comes from parity.json next to the files. docs/benchmark.md and the HTML report define each figure.

    \b
    Examples:
      swav-tf benchmark exported --html report.html
      swav-tf benchmark exported runs/first --batch 1,32 --json today.json
      swav-tf benchmark exported --runner ort-cpu --fail-below ort-cpu:int8:32=100
    """
    show_log(logging.WARNING if quiet else logging.INFO)
    json_file, html_file = options["json_file"], options["html_file"]
    benchmark, damaged = _measure(options)
    if json_file == Path("-"):
        click.echo(benchmark.model_dump_json(indent=1))
    else:
        click.echo("\n".join(benchmark_lines(benchmark)))
    if html_file is not None:
        from evaluate.benchmark.report import write_report

        write_report(html_file, benchmark)
        click.echo(f"report    {html_file}", err=json_file == Path("-"))
    if not benchmark.complete:
        click.echo("Interrupted: the cells that were not measured are skipped above.", err=True)
        return 130
    return _exit_code(benchmark.cells, limits, damaged)


# fmt: on
def _measure(options: dict[str, Any]) -> tuple[Benchmark, list[Path]]:
    """Measure; return also the files that cannot be. Report a missing matplotlib before, remove what a kill left."""
    from evaluate.benchmark.plan import find_models, plan_cells
    from evaluate.benchmark.run import run_benchmark
    from evaluate.benchmark.schema import Settings
    from evaluate.page import check_matplotlib
    from swav_tf.plumbing.files import atomic_write, remove_leftovers

    json_file, html_file = options["json_file"], options["html_file"]
    if html_file is not None:
        check_matplotlib()
    for file in {json_file, html_file} - {None, Path("-")}:
        remove_leftovers(file)
    damaged: list[Path] = []
    models = find_models(options["models"], damaged=damaged)
    planned = plan_cells(models, **{name: options[name] for name in ("runners", "precisions", "batches")})
    settings = Settings(**{name: options[name] for name in SETTINGS})

    def save(benchmark: Benchmark) -> None:
        if json_file not in (None, Path("-")):
            with atomic_write(json_file) as partial:
                partial.write_text(benchmark.model_dump_json(indent=1) + "\n", encoding="utf-8")

    benchmark = run_benchmark(planned, models, settings, after_each=save)
    save(benchmark)
    return benchmark, damaged


def _exit_code(cells: Sequence[Cell], limits: Sequence[tuple[str, float]], damaged: Sequence[Path]) -> int:
    """Return 1 if no cell was measured, or one failed or is slower than its limit, or a file is damaged."""
    problems = [f"{file} was not measured, for the reason above." for file in damaged]
    if not any(cell.status == "ok" for cell in cells):
        problems.append("Nothing was measured, for the reasons above.")
    for name, least in limits:
        matching = [cell for cell in cells if cell.label == name]
        if not matching:
            problems.append(f"--fail-below {name}: no such cell")
        for cell in matching:
            if cell.best is None or cell.best.images_per_second < least:
                what = (
                    f"makes {cell.best.images_per_second:,.1f} images/s"
                    if cell.best
                    else f"was {cell.status}"
                )
                problems.append(f"--fail-below: {cell.model} {name} must make {least:g} images/s, but {what}")
    for problem in problems:
        click.echo(problem, err=True)
    return 1 if problems or any(cell.status == "failed" for cell in cells) else 0
