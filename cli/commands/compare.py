"""`swav-tf compare`: compare two benchmarks, with verdicts that account for noise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cli.options import PATH, Report, amount_option, json_options


@click.command(short_help="Compare two benchmarks, cell by cell.")
@click.argument("a", type=PATH, metavar="A.json")
@click.argument("b", type=PATH, metavar="B.json")
@amount_option(
    "--fail-below",
    "least",
    metavar="RATIO",
    help="Exit code 1 if a cell of B is significantly slower than RATIO times A's, or missing.",
)
@click.option("--any-machine", is_flag=True, help="With --fail-below: accept files from different machines.")
@json_options
def command(a: Path, b: Path, least: float | None, any_machine: bool, report: Report) -> int:
    """Compare the images/s in two files written by `swav-tf benchmark --json`, cell by cell, as B / A.

    A cell counts as faster or slower only if the difference exceeds the noise of both at 99 % confidence. With
    --rounds 3 or more in both benchmarks, the noise between processes is measured, otherwise it is assumed.

    \b
    Examples:
      swav-tf compare before.json after.json
      swav-tf compare main.json branch.json --fail-below 0.95
    """
    from evaluate.benchmark.compare import compare_benchmarks
    from evaluate.benchmark.schema import read_benchmark
    from swav_tf.plumbing.errors import UsageError

    comparison = compare_benchmarks(read_benchmark(a), read_benchmark(b))
    if least is not None and not comparison.comparable and not any_machine:
        raise UsageError(
            "--fail-below requires benchmarks of one machine. Received: "
            f"{'; '.join(comparison.differences)}. Measure A again here, or add --any-machine."
        )
    below = [] if least is None else comparison.below(least)
    undecided = [] if least is None else comparison.undecided(least)
    if report.as_json:
        report.show({**asdict(comparison), "fail_below": least, "below": below, "undecided": undecided})
    else:
        from cli.tables.benchmark import print_comparison

        print_comparison(comparison)
        for line in below:
            click.echo(f"too slow: {line}")
        if undecided:
            click.echo(f"not significantly below {least:g}, accepted: {', '.join(undecided)}")
    if least is not None and not any(cell.ratio is not None for cell in comparison.cells):
        raise UsageError("--fail-below requires a cell that was measured in both benchmarks. Received: none.")
    return 1 if below else 0
