"""Tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluate.benchmark.schema import Benchmark, Cell, Timing
    from export.parity import Parity

SHOWN_MARKS = 12
WIDE = 142  # characters: a file or pipe takes all columns


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[str] = (), wide: bool = False
) -> str:
    """Return rows under headings, right-aligned except for the columns named in `left`; cells of `wide` do not wrap."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False) if wide else Table()
    width = WIDE if wide and not sys.stdout.isatty() else None
    console = Console(highlight=False, soft_wrap=True, markup=False, width=width)
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading in left else "right", no_wrap=wide)
    for row in rows:
        drawn.add_row(*map(str, row))
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")


# === Exported files compared with Keras, for `export` and `verify` ===


def parity_lines(results: Mapping[str, Parity], reference: str = "Keras in float32") -> Iterator[str]:
    """Yield a table with a column per file that was compared with the reference, and the failed gates below it."""
    from evaluate.knn import meaning_among

    compared = {name: parity for name, parity in results.items() if parity.images}
    figures: list[tuple[str, Callable[[Parity], str]]] = [
        ("logits' accuracy", lambda parity: _percent(parity.logits)),
        ("change, points", lambda parity: _points(parity.logits_drop_points)),
        ("images", lambda parity: f"{parity.images:,}"),
        ("of random pixels", lambda parity: f"{parity.images - parity.real_images:,}"),
        ("relative error", lambda parity: _error(parity.relative_error)),
        ("minimum cosine", lambda parity: _figure(parity.cosine_min)),
        ("median cosine", lambda parity: _figure(parity.cosine_median)),
        ("minimum centered cosine", lambda parity: _figure(parity.centered_cosine_min)),
        ("median centered cosine", lambda parity: _figure(parity.centered_cosine_median)),
        ("10 nearest kept", lambda parity: _percent(parity.neighbour_overlap)),
        ("same prototype", lambda parity: _percent(parity.cluster_agreement)),
        ("same class", lambda parity: _percent(parity.class_agreement)),
        ("k-NN among these images", lambda parity: _percent(parity.knn)),
        ("change, points", lambda parity: _points(parity.knn_drop_points)),
        ("least-squares classifier on features", lambda parity: _percent(parity.probe)),
        ("change, points", lambda parity: _points(parity.probe_drop_points)),
        ("verdict", lambda parity: "passed" if parity.passed else "FAILED"),
    ]
    if compared:
        heading = f"compared with {reference}"
        rows = [(name, *(figure(parity) for parity in compared.values())) for name, figure in figures]
        names = (name.removesuffix(".onnx") for name in compared)
        yield table((heading, *names), [row for row in rows if set(row[1:]) != {"-"}], left=(heading,))
        if counts := [parity.knn_images for parity in compared.values() if parity.knn_images]:
            yield meaning_among(counts)
    for name, parity in results.items():
        yield from (f"{name}: {failure}" for failure in parity.failures)
        yield from (f"{name}: gate not applied: {gate}" for gate in parity.gates_not_applied)


def _error(errors: Mapping[str, float]) -> str:
    return f"{max(errors.values()):.1e}" if errors else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _points(drop: float | None) -> str:
    return "-" if drop is None else f"{0.0 - drop:+.2f}"


# === A benchmark ===


def benchmark_lines(benchmark: Benchmark) -> Iterator[str]:
    """Yield the machine, a table of the cells, and what was skipped, failed or marked."""
    machine = benchmark.machine
    gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in machine.gpus) or "no NVIDIA GPU"
    yield f"{machine.cpu}, {machine.cores} cores, load {_number(machine.load)}; {gpus}"
    # The other figures are in --json and --html.
    columns = ["runner", "precision", "batch", "images/s", "±", "p50 ms", "p99", "k-NN"]
    if benchmark.several_models:
        columns.insert(0, "model")
    rows = []
    for cell in benchmark.cells:
        for where, timing in ((" on the GPU", cell.device), ("", cell.host)):
            if cell.best is not None and timing is not None:
                figures = _figures(benchmark, cell, timing, where)
                rows.append([figures[column] for column in columns])
    if rows:
        yield table(columns, rows, left=("model", "runner", "precision"), wide=True)
    yield from _notes(benchmark)


def _figures(benchmark: Benchmark, cell: Cell, timing: Timing, where: str) -> dict[str, str]:
    """Return a row, by column."""
    accuracy = benchmark.accuracy_of(cell)
    return {
        "model": cell.model,
        "runner": f"{cell.runner}{where}{' *' if cell.marks else ''}",
        "precision": cell.precision,
        "batch": f"{cell.batch}",
        "images/s": _number(timing.images_per_second, 1 if timing.images_per_second < 1000 else 0),
        "±": f"{200 * timing.images_per_second_error:.0f} %",
        "p50 ms": _number(timing.p50_ms),
        "p99": _number(timing.p99_ms),
        "k-NN": "-" if accuracy is None or accuracy.knn is None else f"{100 * accuracy.knn:.1f} %",
    }


def _notes(benchmark: Benchmark) -> Iterator[str]:
    """Yield the marks, and what was not measured, grouped by reason."""
    marked = [cell for cell in benchmark.cells if cell.marks]
    for cell in marked[:SHOWN_MARKS]:
        name = f"{cell.model} {cell.label}" if benchmark.several_models else cell.label
        yield f"* {name}: {'; '.join(cell.marks)}"
    if len(marked) > SHOWN_MARKS:
        yield f"* and {len(marked) - SHOWN_MARKS} more marked cells; all are in --json and --html"
    if counts := benchmark.knn_images:
        from evaluate.knn import meaning_among

        yield meaning_among(counts)
    reasons: dict[tuple[str, str], list[Cell]] = {}
    for cell in benchmark.cells:
        if cell.status != "ok":
            reasons.setdefault((cell.status, cell.reason or ""), []).append(cell)
    for (status, reason), cells in reasons.items():
        names = ", ".join(dict.fromkeys(f"{cell.runner} {cell.precision}" for cell in cells))
        count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        yield f"{status} ({reason}): {names}, {count}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
