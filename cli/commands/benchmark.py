"""`swav-tf benchmark`: how fast exported files and runs are, each beside its accuracy. Needs no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import computing_threads_option, counts, names, print_json, quiet_option
from cli.progress import cell_progress

if TYPE_CHECKING:
    from evaluate.benchmark.schema import Benchmark, Cell


def _limits(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    """Cells and the images/s that they must reach."""
    found = []
    for value in values:
        cell, _, speed = value.rpartition("=")
        try:
            least = float(speed)
        except ValueError:
            least = 0.0
        if not (least > 0 and cell.count(":") == 2 and cell.rpartition(":")[2].isdecimal()):
            raise click.BadParameter(
                f"must be RUNNER:PRECISION:BATCH=IMAGES_PER_SECOND, as ort-cpu:fp32:32=10. Received: {value}"
            )
        found.append((cell, least))
    return tuple(found)


@click.command(short_help="Measure images/s and latency of exported files and runs.")
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option(
    "--runner",
    "runners",
    callback=names,
    metavar="NAME,...",
    help="ort-cpu, ort-cuda, ort-tensorrt, tensorrt, keras, or a peer: torch-cpu, torch-compile-cpu, torch-cuda, "
    "torch-compile-cuda, ort-torch-cpu, trtexec.  [default: all that can run a MODEL here, except peers]",
)
@click.option(
    "--peers", is_flag=True, help="Measure the peers too: the same network by PyTorch and by trtexec."
)
@click.option(
    "--precision", "precisions", callback=names, metavar="NAME,...",
    help="fp32, fp16, int8.  [default: all that MODEL has]",
)  # fmt: skip
@click.option(
    "--batch", "batches", callback=counts, metavar="N,...", default="1,8,32,128", show_default=True,
    help="Images in a call.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write all figures here, after each cell; `-` for stdout, at the end.",
)  # fmt: skip
@click.option(
    "--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write a report with charts here: one file that needs no network.",
)  # fmt: skip
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    help="Least time spent on a cell.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,
    show_default=True,
    help="Least runs of a cell; a p99 needs 1000.",
)
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=60.0,
    show_default=True,
    help="Longest time spent on a cell; cells with too few runs are marked.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
    help="Times that all cells are measured, in turn: shows how much processes differ.",
)  # fmt: skip
@computing_threads_option
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=True,
    show_default=True,
    help="On a GPU, record a run's kernel launches and repeat them as one.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    default=1800.0,
    show_default=True,
    help="A cell whose process takes longer counts as failed.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the cells in --json FILE that were measured on the same files and machine.",
)
@click.option(
    "--fail-below", "limits", callback=_limits, multiple=True, metavar="CELL=X",
    help="Exit code 1 if a cell is slower than X images/s or was not measured, such as ort-cpu:fp32:32=10. "
    "May be repeated.",
)  # fmt: skip
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --json, and measure nothing.")
@quiet_option
def command(
    models: tuple[Path, ...],
    runners: tuple[str, ...] | None,
    peers: bool,
    precisions: tuple[str, ...] | None,
    batches: tuple[int, ...],
    json_file: Path | None,
    html_file: Path | None,
    seconds: float,
    runs: int,
    max_seconds: float,
    rounds: int,
    threads: int,
    cuda_graph: bool,
    timeout: float,
    resume: bool,
    limits: tuple[tuple[str, float], ...],
    schema: bool,
    quiet: bool,
) -> int:
    """Measure images/s and latency of MODELs: folders or files of `swav-tf export`, and run folders (for keras).

    Each cell (model, runner, precision, batch) runs in a fresh process. A cell that cannot run here
    (a GPU runner without a GPU, say) is skipped, and the reason is shown. Accuracy comes from
    parity.json beside the files. What each figure means: docs/benchmark.md, or the HTML report itself.

    \b
    Examples:
      swav-tf benchmark exported --html report.html
      swav-tf benchmark exported runs/first --batch 1,32 --rounds 3 --json today.json
      swav-tf benchmark exported --runner ort-cpu --peers --fail-below ort-cpu:int8:32=100
    """
    from evaluate.benchmark.schema import json_schema

    if schema:
        print_json(json_schema())
        return 0
    if not models:
        raise click.UsageError("Missing argument 'MODEL...'.")
    if max_seconds < seconds:
        raise click.UsageError(
            f"--max-seconds must be at least --seconds. Received: {max_seconds:g} < {seconds:g}."
        )
    to_stdout = json_file == Path("-")
    if resume and (json_file is None or to_stdout):
        raise click.UsageError("--resume keeps the cells in --json FILE, which must be given")
    for file in (json_file, html_file):
        if file is not None and file != Path("-"):
            _prepare_place(file)

    from evaluate.benchmark.artifacts import find_artifacts
    from evaluate.benchmark.report.document import write_report
    from evaluate.benchmark.run import PRECISIONS, plan_cells, run_benchmark, with_peers
    from evaluate.benchmark.schema import Settings, read_benchmark, write_benchmark

    unknown = [name for name in precisions or () if name not in PRECISIONS]
    if unknown:
        raise click.UsageError(
            f"--precision must be of {', '.join(PRECISIONS)}. Received: {', '.join(unknown)}."
        )
    artifacts = find_artifacts(models)
    planned = plan_cells(
        artifacts,
        runners=with_peers(runners) if peers else runners,
        precisions=precisions,  # type: ignore[arg-type]  # checked above
        batches=batches,
    )
    settings = Settings(
        seconds=seconds,
        runs=runs,
        max_seconds=max_seconds,
        rounds=rounds,
        threads=threads,
        cuda_graph=cuda_graph,
    )
    kept = read_benchmark(json_file) if resume and json_file is not None and json_file.exists() else None

    def save(benchmark: Benchmark) -> None:
        if json_file is not None and not to_stdout:
            write_benchmark(json_file, benchmark)

    with cell_progress(quiet=quiet) as tell:
        benchmark = run_benchmark(
            planned, artifacts, settings, timeout_seconds=timeout, kept=kept, tell=tell, save=save
        )
    save(benchmark)
    if to_stdout:
        click.echo(benchmark.model_dump_json(indent=1))
    else:
        from cli.tables.benchmark import print_benchmark

        print_benchmark(benchmark)
    if html_file is not None:
        write_report(html_file, benchmark)
        click.echo(f"report    {html_file}", err=to_stdout)
    if not benchmark.complete:
        click.echo("Interrupted: the cells that were not measured are skipped above.", err=True)
        return 130
    return _verdict(benchmark.cells, limits)


def _prepare_place(file: Path) -> None:
    """Refuses a place that cannot be written now, not after an hour; removes what a killed benchmark left there."""
    from swav_tf.plumbing.files import remove_leftovers

    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise click.UsageError(
            f"{file} must be in a folder that can be written. Received: {folder}, which cannot."
        )
    remove_leftovers(file)


def _verdict(cells: Sequence[Cell], limits: Sequence[tuple[str, float]]) -> int:
    """The exit code: 1 where a cell failed or is slower than it must be."""
    code = 1 if any(cell.status == "failed" for cell in cells) else 0
    for name, least in limits:
        matching = [cell for cell in cells if cell.label == name]
        if not matching:
            click.echo(f"--fail-below {name}: there is no such cell", err=True)
            code = 1
        for cell in matching:
            speed = cell.best.images_per_second if cell.best else None
            if speed is None or speed < least:
                what = f"was {cell.status}" if speed is None else f"makes {speed:,.1f} images/s"
                click.echo(
                    f"--fail-below: {cell.model} {name} must make {least:g} images/s, but {what}", err=True
                )
                code = 1
    return code
