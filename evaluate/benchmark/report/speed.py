"""The charts: how fast, at what accuracy, and how the time of a call grows with the batch. Pure."""

from __future__ import annotations

from html import escape
from typing import Final

from evaluate.benchmark.report.charts import (
    COLOURS,
    Bar,
    Point,
    Series,
    bar_chart,
    line_chart,
    linear_axis,
    logarithmic_axis,
    scatter_chart,
)
from evaluate.benchmark.report.elements import milliseconds
from evaluate.benchmark.schema import Benchmark, Cell

BARS: Final = 16
LEAST_SPAN: Final = 2.0  # of the axis of accuracies, percentage points


def headline(benchmark: Benchmark) -> str:
    """The few figures that one looks for first."""
    cells = _measured(benchmark)
    fastest = max(cells, key=_speed)
    quickest = min(cells, key=_median_ms)
    cards = [
        (f"{_speed(fastest):,.0f}", "images/s, the most", _place(benchmark, fastest)),
        (
            f"{milliseconds(_median_ms(quickest))} ms",
            "for a call, the least (median)",
            _place(benchmark, quickest),
        ),
    ]
    exact = next((cell for cell in cells if cell.key == (*fastest.key[:2], "fp32", fastest.batch)), fastest)
    if exact is not fastest:
        ratio = _speed(fastest) / _speed(exact)
        cards.append((f"{ratio:.2f}x", f"{fastest.precision} against fp32", "same runner and batch"))
    accuracy = benchmark.accuracy_of(fastest)
    if accuracy is not None and accuracy.knn is not None and accuracy.knn_change_points is not None:
        cards.append(
            (
                f"{100 * accuracy.knn:.1f} %",
                "k-NN accuracy at that speed",
                f"{accuracy.knn_change_points:+.2f} points against Keras",
            )
        )
    shown = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(what)}</span><small>{escape(where)}</small></div>'
        for figure, what, where in cards
    )
    return f'<div class="cards">{shown}</div>'


def speed_and_accuracy(benchmark: Benchmark) -> str:
    """Each runner and precision at its best batch: a bar for its speed, a point for speed and accuracy."""
    rows = _rows(benchmark)
    best = {name: max(cells, key=_speed) for name, cells in rows.items()}
    ranked = sorted(best.items(), key=lambda item: -_speed(item[1]))[:BARS]
    bars = bar_chart(
        [
            Bar(
                name,
                _speed(cell),
                f"{_speed(cell):,.0f}, batch {cell.batch}",
                _title(cell),
                _colour(name, rows),
            )
            for name, cell in ranked
        ],
        name="images a second of each runner and precision at its best batch",
    )
    text = f"<h3>Images a second, each at its best batch</h3>{bars}<h3>Images a second against k-NN accuracy</h3>"
    points: dict[str, Point] = {}
    known: float | None = None  # Keras' own
    for name, cell in best.items():
        accuracy = benchmark.accuracy_of(cell)
        if accuracy is not None and accuracy.knn is not None:
            points[name] = Point(_speed(cell), 100 * accuracy.knn, _title(cell), name)
            known = accuracy.knn_reference if known is None else known
    if not points:
        return text + (
            "<p>Nothing here has a k-NN accuracy: <code>swav-tf verify</code> with labelled images measures it.</p>"
        )
    level = None if known is None else (100 * known, f"Keras in float32: {100 * known:.1f} %")
    heights = [point.y for point in points.values()] + ([] if level is None else [level[0]])
    chart = scatter_chart(
        [Series(name, (point,), _colour(name, rows)) for name, point in points.items()],
        logarithmic_axis("images a second, at the best batch", [point.x for point in points.values()]),
        linear_axis("k-NN accuracy, %", heights, least_span=LEAST_SPAN),
        level=level,
        name="images a second against k-NN accuracy",
    )
    return f"{text}{chart}<p>Better is up and to the right.</p>"


def latency(benchmark: Benchmark) -> str:
    """A line for each runner and precision, over the batches."""
    rows = _rows(benchmark)
    series = [
        Series(
            name,
            tuple(Point(cell.batch, _median_ms(cell), _title(cell)) for cell in cells),
            _colour(name, rows),
        )
        for name, cells in rows.items()
    ]
    batches = sorted({cell.batch for cells in rows.values() for cell in cells})
    times = [point.y for one in series for point in one.points]
    chart = line_chart(
        series,
        logarithmic_axis("images in a call", batches, ticks=batches),
        logarithmic_axis("median time of a call, ms", times),
        name="median latency against batch size",
        height=400,
    )
    return (
        "<p>A line that rises as steeply as the batch is limited by arithmetic or memory; a flat one by "
        f"what every call costs.</p>{chart}"
    )


def _measured(benchmark: Benchmark) -> list[Cell]:
    return [cell for cell in benchmark.cells if cell.best is not None]


def _rows(benchmark: Benchmark) -> dict[str, list[Cell]]:
    """Cells that differ by the batch alone, by their name, smallest batch first."""
    rows: dict[str, list[Cell]] = {}
    for cell in sorted(_measured(benchmark), key=lambda cell: cell.batch):
        rows.setdefault(_name(benchmark, cell), []).append(cell)
    return rows


def _name(benchmark: Benchmark, cell: Cell) -> str:
    """A cell without its batch."""
    return " ".join([*([cell.model] if benchmark.several_models else []), cell.runner, cell.precision])


def _place(benchmark: Benchmark, cell: Cell) -> str:
    return f"{_name(benchmark, cell)}, batch {cell.batch}"


def _colour(name: str, rows: dict[str, list[Cell]]) -> int:
    return sorted(rows).index(name) % COLOURS


def _speed(cell: Cell) -> float:
    return cell.best.images_per_second if cell.best else 0.0


def _median_ms(cell: Cell) -> float:
    return cell.best.p50_ms if cell.best else 0.0


def _title(cell: Cell) -> str:
    """What is shown when the mouse rests on a mark."""
    return (
        f"{cell.runner} {cell.precision}, batch {cell.batch}: {_speed(cell):,.1f} images/s, "
        f"{milliseconds(_median_ms(cell))} ms a call" + (f" ({'; '.join(cell.marks)})" if cell.marks else "")
    )
