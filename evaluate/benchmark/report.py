"""Write a benchmark as one HTML page: headline, charts, tables and definitions, without scripts or network."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

from evaluate.benchmark.runners import RUNNERS
from evaluate.benchmark.schema import Benchmark, Cell, disturbed
from evaluate.knn import meaning_among
from evaluate.page import FAINT, INK, SERIES, STYLE, add_legend, inline_svg, new_axes, write_page

MAX_BARS: Final = 16
MIN_SPAN: Final = 2.0  # percentage points on the axis of accuracies, so that small differences look small
MARKERS: Final = {"fp32": "o", "fp16": "s", "int8": "D"}

Styles = dict[str, dict[str, Any]]  # keyword arguments of `plot` by name of the row


def write_report(path: Path, benchmark: Benchmark) -> None:
    """Write the page."""
    names = dict.fromkeys(model.name for model in benchmark.models)
    used = {cell.runner for cell in benchmark.cells}
    write_page(
        path,
        "benchmark/report.html.jinja",
        benchmark=benchmark,
        title=f"Inference benchmark: {', '.join(names)}",
        subtitle=_subtitle(benchmark),
        cards=_cards(benchmark),
        charts=_charts(benchmark),
        knn_meaning=meaning_among(benchmark.knn_images) if benchmark.knn_images else None,
        on_gpu=any(cell.gpu_mib is not None for cell in benchmark.cells),
        not_measured=_not_measured(benchmark),
        runners={name: facts.meaning for name, facts in RUNNERS.items() if name in used},
    )


def _subtitle(benchmark: Benchmark) -> str:
    several = benchmark.several_models
    models = dict.fromkeys(
        f"{f'{model.name}: ' if several else ''}recipe {model.recipe}, {model.side}-pixel images"
        for model in benchmark.models
    )
    parts = list(models)
    parts += [benchmark.machine.cpu, *(gpu.name for gpu in benchmark.machine.gpus)]
    parts.append(f"{benchmark.created.replace('T', ' ').removesuffix('+00:00')} UTC")
    return " · ".join(parts if benchmark.complete else [*parts, "interrupted"])


def _cards(benchmark: Benchmark) -> list[tuple[str, str, str]]:
    """Return the headline figures of undisturbed cells: value, meaning, cell; none for several models."""
    cells = [cell for cell in benchmark.cells if cell.best and not disturbed(cell)]
    if not cells or benchmark.several_models:
        return []
    fastest, quickest = max(cells, key=_speed), min(cells, key=_median_ms)
    noisy = any(cell.best and disturbed(cell) for cell in benchmark.cells)
    places = [
        f"{_name(benchmark, cell)}, batch {cell.batch}{'; noisy cells do not count' if noisy else ''}"
        for cell in (fastest, quickest)
    ]
    latency = _median_ms(quickest)
    cards = [
        (f"{_speed(fastest):,.0f}", "highest images/s", places[0]),
        (f"{latency:,.{3 if latency < 10 else 1}f} ms", "lowest median latency", places[1]),
    ]
    fp32 = [cell for cell in cells if cell.key[:3] == (*fastest.key[:2], "fp32")]
    if fp32 and fastest.precision != "fp32":
        ratio = _speed(fastest) / max(map(_speed, fp32))
        cards.append(
            (f"{ratio:.2f}x", f"{fastest.precision} over fp32", "same runner, each at its best batch")
        )
    accuracy = benchmark.accuracy_of(fastest)
    if accuracy is not None and accuracy.knn is not None and accuracy.knn_change_points is not None:
        change = f"{accuracy.knn_change_points:+.2f} points from Keras; "
        change += f"{accuracy.knn_images:,} images, each by the 20 nearest of the others"
        cards.append((f"{100 * accuracy.knn:.1f} %", "k-NN accuracy at that speed", change))
    return cards


def _not_measured(benchmark: Benchmark) -> list[list[Cell]]:
    """Return the skipped and failed cells, grouped where only the batch differs."""
    cells = [cell for cell in benchmark.cells if cell.status != "ok"]
    groups = itertools.groupby(cells, key=lambda cell: (cell.status, cell.key[:3], cell.reason))
    return [list(group) for _, group in groups]


# === Charts ===


def _charts(benchmark: Benchmark) -> list[tuple[str, str, str]]:
    """Return heading, caption and SVG of each chart."""
    rows: dict[str, list[Cell]] = {}  # cells that differ in the batch alone
    for cell in sorted(benchmark.cells, key=lambda cell: cell.batch):
        if cell.best:
            rows.setdefault(_name(benchmark, cell), []).append(cell)
    if not rows:
        return []
    import matplotlib

    best = {name: max(cells, key=_speed) for name, cells in rows.items()}
    runners = list(dict.fromkeys(cells[0].key[:2] for cells in rows.values()))
    styles = {}
    for name, (cell, *_) in rows.items():  # colors differ by model and runner, markers by precision
        color = SERIES[runners.index(cell.key[:2]) % len(SERIES)]
        styles[name] = {"color": color, "marker": MARKERS[cell.precision]}
    with matplotlib.rc_context(STYLE):
        rising = "A rising line is limited by the cost of a call, a flat one by computing. The table has the latencies."
        charts = [
            ("Images per second", "At the best batch, with twice the standard error.", _bars(best, styles)),
            ("Images per second by batch size", rising, _by_batch(rows, styles)),
        ]
        if scatter := _accuracy(benchmark, best, styles):
            charts.append(
                (
                    "Images per second and k-NN accuracy",
                    "Better is up and to the right. " + meaning_among(benchmark.knn_images).replace("`", ""),
                    scatter,
                )
            )
    return charts


def _bars(best: dict[str, Cell], styles: Styles) -> str:
    ranked = sorted(best.items(), key=lambda item: -_speed(item[1]))[:MAX_BARS]
    figure, axes = new_axes(0.3 + 0.48 * len(ranked))
    axes.axis("off")
    right = 1.15 * _speed(ranked[0][1])  # the errors of short cells have no limit, and end there
    axes.set(xlim=(0, right), ylim=(len(ranked) - 0.5, -0.6))
    for place, (name, cell) in enumerate(ranked):
        timing = cell.best
        assert timing is not None
        speed, error = timing.images_per_second, 2 * timing.images_per_second_error * timing.images_per_second
        style: dict[str, Any] = {"color": styles[name]["color"], "ecolor": INK, "error_kw": {"elinewidth": 1}}
        axes.barh(place + 0.1, speed, xerr=error, height=0.4, **style)
        axes.text(0, place - 0.17, name, va="bottom")
        figures = f"{speed:,.{1 if speed < 100 else 0}f}, batch {cell.batch}{', disturbed' if disturbed(cell) else ''}"
        axes.text(right, place - 0.17, figures, va="bottom", ha="right", color=FAINT)
    return inline_svg(figure, "images per second of each runner and precision at its best batch")


def _by_batch(rows: dict[str, list[Cell]], styles: Styles) -> str:
    figure, axes = new_axes(3.4)
    batches = sorted({cell.batch for cells in rows.values() for cell in cells})
    axes.set(xlabel="images per call", ylabel="images per second")
    axes.set_xticks(range(len(batches)), map(str, batches))
    for name, cells in rows.items():
        places = [batches.index(cell.batch) for cell in cells]
        axes.plot(places, list(map(_speed, cells)), label=name, **styles[name])
    axes.set_ylim(bottom=0)
    add_legend(figure, axes)
    return inline_svg(figure, "images per second by batch size")


def _accuracy(benchmark: Benchmark, best: dict[str, Cell], styles: Styles) -> str | None:
    """Return a scatter of speed and accuracy, None if no file was verified with labels."""
    points, level = {}, None
    for name, cell in best.items():
        accuracy = benchmark.accuracy_of(cell)
        if accuracy is not None and accuracy.knn is not None:
            points[name] = (_speed(cell), 100 * accuracy.knn)
            level = accuracy.knn_reference if level is None else level
    if not points:
        return None
    figure, axes = new_axes(3.4)
    axes.set(xlabel="images per second at the best batch", ylabel="k-NN among the images, %")
    for name, (speed, knn) in points.items():
        axes.plot([speed], [knn], linestyle="none", label=name, clip_on=False, **styles[name])
    if level is not None:
        axes.axhline(100 * level, color=FAINT, linestyle=(0, (5, 4)), linewidth=1, label="Keras, float32")
    axes.set_xlim(0, 1.1 * max(speed for speed, _ in points.values()))
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    missing = max(0.0, MIN_SPAN - (high - low)) / 2
    axes.set_ylim(low - missing, min(high + missing, 100))
    add_legend(figure, axes)
    return inline_svg(figure, "images per second and k-NN accuracy")


def _name(benchmark: Benchmark, cell: Cell) -> str:
    """Return a cell's name without its batch."""
    return f"{cell.model if benchmark.several_models else ''} {cell.runner} {cell.precision}".strip()


def _speed(cell: Cell) -> float:
    return cell.best.images_per_second if cell.best else 0.0


def _median_ms(cell: Cell) -> float:
    return cell.best.p50_ms if cell.best else 0.0
