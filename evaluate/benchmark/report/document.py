"""A benchmark as one HTML page: charts, tables, and every number defined in words. No network, no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.benchmark.report import speed, tables
from evaluate.benchmark.report.definitions import definitions
from evaluate.benchmark.report.elements import section
from evaluate.benchmark.report.page import page
from evaluate.benchmark.schema import Benchmark
from swav_tf.plumbing.files import atomic_write


@dataclass(frozen=True)
class Extra:
    """A section that stands before the benchmark's own.

    Attributes:
        title: its heading.
        content: HTML.
    """

    title: str
    content: str


def write_report(
    path: Path, benchmark: Benchmark, *, title: str | None = None, extras: Sequence[Extra] = ()
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the file.
        benchmark: what it shows.
        title: its heading; None: the names of the models.
        extras: sections before the figures.

    Raises:
        DataError: the disk refuses.
    """
    text = report(benchmark, title=title, extras=extras)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def report(benchmark: Benchmark, *, title: str | None = None, extras: Sequence[Extra] = ()) -> str:
    """The page as text; the arguments are those of `write_report`."""
    names = list(dict.fromkeys(model.name for model in benchmark.models))
    heading = title or f"Inference benchmark: {', '.join(names)}"
    sections = [section(extra.title, extra.content) for extra in extras]
    if any(cell.best is not None for cell in benchmark.cells):
        sections += [
            speed.headline(benchmark),
            section("Speed and accuracy", speed.speed_and_accuracy(benchmark)),
            section("Latency", speed.latency(benchmark)),
        ]
    sections += [
        section("All cells", tables.cells(benchmark)),
        section("Did the features survive?", tables.parity(benchmark.models)),
        section("The machine", tables.machine(benchmark)),
        section("What the figures mean", definitions(cell.runner for cell in benchmark.cells)),
    ]
    return page(heading, _subtitle(benchmark), sections)


def _subtitle(benchmark: Benchmark) -> str:
    first = benchmark.models[0] if benchmark.models else None
    parts = [
        *([] if first is None else [f"recipe {first.recipe}, {first.side}-pixel images"]),
        benchmark.machine.cpu,
        *(gpu.name for gpu in benchmark.machine.gpus),
        benchmark.created.replace("T", " ").removesuffix("+00:00") + " UTC",
        *([] if benchmark.complete else ["interrupted"]),
    ]
    return " · ".join(parts)
