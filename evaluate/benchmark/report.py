"""A benchmark as one HTML page: charts, tables, and every number defined in words. No network, no TensorFlow."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evaluate.benchmark.charts import (
    COLOURS,
    Point,
    Series,
    bar_chart,
    line_chart,
    linear_axis,
    logarithmic_axis,
    scatter_chart,
)
from evaluate.benchmark.page import page
from evaluate.benchmark.schema import Accuracy, Benchmark, Cell, Explanation, Model, Timing, write_whole
from evaluate.benchmark.targets import RUNNERS

BARS: Final = 16
POINTS: Final = 1.0  # least span of the axis of accuracies, percentage points each way


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
    write_whole(path, report(benchmark, title=title, extras=extras))


def report(benchmark: Benchmark, *, title: str | None = None, extras: Sequence[Extra] = ()) -> str:
    """The page as text; the arguments are those of `write_report`."""
    ok = [cell for cell in benchmark.cells if cell.status == "ok" and cell.best is not None]
    names = list(dict.fromkeys(model.name for model in benchmark.models))
    heading = title or f"Inference benchmark: {', '.join(names)}"
    sections = [_section(extra.title, extra.content) for extra in extras]
    if ok:
        sections += [
            _headline(benchmark, ok),
            _section("Speed and accuracy", _speed_and_accuracy(benchmark, ok)),
            _section("Latency", _latency(ok)),
        ]
    sections += [
        _section("All cells", _cells(benchmark)),
        _section("Did the features survive?", _parity(benchmark.models)),
        _section("The machine", _machine(benchmark)),
        _section("What the figures mean", _definitions(benchmark)),
    ]
    return page(heading, _subtitle(benchmark), sections)


# === Charts ===


def _headline(benchmark: Benchmark, ok: Sequence[Cell]) -> str:
    """The few figures that one looks for first."""
    fastest = max(ok, key=_speed)
    quickest = min(ok, key=lambda cell: cell.best.p50_ms if cell.best else 0.0)
    cards = [
        (f"{_speed(fastest):,.0f}", "images/s, the most", f"{_name(fastest, ok)}, batch {fastest.batch}"),
        (
            f"{_time(quickest.best)} ms",
            "for a call, the least (median)",
            f"{_name(quickest, ok)}, batch {quickest.batch}",
        ),
    ]
    exact = [c for c in ok if c.precision == "fp32" and (c.runner, c.batch, c.model) == _same(fastest)]
    if exact and exact[0] is not fastest:
        ratio = _speed(fastest) / _speed(exact[0])
        cards.append((f"{ratio:.2f}x", f"{fastest.precision} against fp32", "same runner and batch"))
    accuracy = _accuracies(benchmark).get(fastest.file or "")
    if accuracy is not None and accuracy.knn is not None and accuracy.knn_reference is not None:
        change = 100 * (accuracy.knn - accuracy.knn_reference)
        cards.append(
            (
                f"{100 * accuracy.knn:.1f} %",
                "k-NN accuracy at that speed",
                f"{change:+.2f} points against Keras",
            )
        )
    shown = "".join(
        f'<div class="card"><b>{_text(figure)}</b><span>{_text(what)}</span><small>{_text(where)}</small></div>'
        for figure, what, where in cards
    )
    return f'<div class="cards">{shown}</div>'


def _speed_and_accuracy(benchmark: Benchmark, ok: Sequence[Cell]) -> str:
    rows = _rows(ok)
    best = {row: max(cells, key=_speed) for row, cells in rows.items()}
    ranked = sorted(best.items(), key=lambda item: -_speed(item[1]))[:BARS]
    bars = bar_chart(
        [
            (row, _speed(cell), f"{_speed(cell):,.0f}, batch {cell.batch}", _title(cell), _colour(row, rows))
            for row, cell in ranked
        ],
        name="images a second of each runner and precision at its best batch",
    )
    text = "<h3>Images a second, each at its best batch</h3>" + bars
    accuracies = _accuracies(benchmark)
    points = {
        row: (cell, accuracy)
        for row, cell in best.items()
        if (accuracy := accuracies.get(cell.file or "")) is not None and accuracy.knn is not None
    }
    text += "<h3>Images a second against k-NN accuracy</h3>"
    if not points:
        return text + (
            "<p>Nothing here has a k-NN accuracy: <code>swav-tf verify</code> with labelled images measures it.</p>"
        )
    known = [accuracy.knn_reference for _, accuracy in points.values() if accuracy.knn_reference is not None]
    level = (100 * known[0], f"Keras in float32: {100 * known[0]:.1f} %") if known else None
    heights = [100 * (accuracy.knn or 0.0) for _, accuracy in points.values()] + ([level[0]] if level else [])
    series = [
        Series(
            row,
            (Point(_speed(cell), 100 * (accuracy.knn or 0.0), _title(cell), row),),
            _colour(row, rows),
        )
        for row, (cell, accuracy) in points.items()
    ]
    chart = scatter_chart(
        series,
        logarithmic_axis("images a second, at the best batch", [_speed(cell) for cell, _ in points.values()]),
        linear_axis("k-NN accuracy, %", heights, least_span=2 * POINTS),
        level=level,
        name="images a second against k-NN accuracy",
    )
    return text + chart + "<p>Better is up and to the right.</p>"


def _latency(ok: Sequence[Cell]) -> str:
    rows = _rows(ok)
    series = [
        Series(
            row,
            tuple(Point(cell.batch, cell.best.p50_ms, _title(cell)) for cell in cells if cell.best),
            _colour(row, rows),
        )
        for row, cells in rows.items()
    ]
    batches = sorted({cell.batch for cell in ok})
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


# === Tables ===


def _cells(benchmark: Benchmark) -> str:
    several = len({cell.model for cell in benchmark.cells}) > 1
    on_gpu = any(cell.memory and cell.memory.gpu_mib is not None for cell in benchmark.cells)
    columns = [column for column in FIGURES if on_gpu or column != "GPU MiB"]
    heads = [*(["model"] if several else []), "runner", "precision", "batch", *columns]
    accuracies = _accuracies(benchmark)
    rows = []
    for cell in benchmark.cells:
        if cell.status != "ok" or cell.best is None:
            continue
        first = [*([cell.model] if several else []), cell.runner, cell.precision, f"{cell.batch}"]
        for where, timing in (("GPU", cell.device), ("host", cell.host)):
            if timing is not None:
                figures = _figures(cell, timing, where, accuracies.get(cell.file or ""))
                row = _tds([*first, *(figures[column] for column in columns)])
                rows.append(f"<tr{_class('marked', bool(cell.marks))}>{row}</tr>")
        if cell.marks:
            text = _text("; ".join(cell.marks))
            rows.append(f'<tr class="marks"><td colspan="{len(heads)}">{text}</td></tr>')
    return (_table(heads, rows) if rows else "") + _not_measured(benchmark.cells, several)


FIGURES: Final = (
    "from", "images/s", "±", "p50 ms", "p90", "p95", "p99", "runs", "host MiB", "GPU MiB", "k-NN", "bound by",
    "roofline",
)  # fmt: skip


def _figures(cell: Cell, timing: Timing, where: str, accuracy: Accuracy | None) -> dict[str, str]:
    """The columns FIGURES."""
    memory, explained = cell.memory, cell.explanation if timing is cell.best else None
    share = None if explained is None else explained.roofline_share
    figures = [
        where,
        f"{timing.images_per_second:,.{1 if timing.images_per_second < 1000 else 0}f}",
        f"{200 * timing.images_per_second_error:.0f} %",
        *(_ms(ms) for ms in (timing.p50_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms)),
        f"{timing.runs:,}",
        _mib(memory.host_peak_mib if memory else None),
        _mib(memory.gpu_mib if memory else None),
        "-" if accuracy is None or accuracy.knn is None else f"{100 * accuracy.knn:.2f} %",
        "-" if explained is None else _bound(explained),
        "-" if share is None else f"{100 * share:.0f} %",
    ]
    return dict(zip(FIGURES, figures, strict=True))


def _not_measured(cells: Sequence[Cell], several: bool) -> str:
    """Cells that were skipped or failed, those of one reason together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for cell in cells:
        if cell.status != "ok":
            key = (cell.status, cell.model if several else "", cell.runner, cell.precision, cell.reason or "")
            groups.setdefault(key, []).append(cell.batch)
    if not groups:
        return ""
    rows = [
        f'<tr class="{status}">'
        + _tds(
            [status, *([model] if several else []), runner, precision, ", ".join(map(str, batches)), reason]
        )
        + "</tr>"
        for (status, model, runner, precision, reason), batches in groups.items()
    ]
    heads = ["", *(["model"] if several else []), "runner", "precision", "batches", "reason"]
    return f"<h3>Not measured</h3>{_table(heads, rows)}"


def _bound(explained: Explanation) -> str:
    shares = {"transfer": explained.transfer_share, "launch": explained.fixed_share}
    share = shares.get(explained.bound or "")
    return (explained.bound or "-") + ("" if share is None else f" {100 * share:.0f} %")


def _parity(models: Sequence[Model]) -> str:
    rows = []
    for model in models:
        accuracy = model.accuracy
        figures = [f"{model.name}/{Path(model.file).name}", model.precision, f"{model.bytes / 2**20:,.1f}"]
        if model.kind == "run":
            continue  # Keras is the measure
        if accuracy is None:
            rows.append(f'<tr>{_tds(figures)}<td colspan="5">not verified</td></tr>')
            continue
        change = (
            None
            if accuracy.knn is None or accuracy.knn_reference is None
            else 100 * (accuracy.knn - accuracy.knn_reference)
        )
        figures += [
            "-" if accuracy.relative_error is None else f"{accuracy.relative_error:.1e}",
            "-" if accuracy.cosine_min is None else f"{accuracy.cosine_min:.6f}",
            "-" if accuracy.knn is None else f"{100 * accuracy.knn:.2f} %",
            "-" if change is None else f"{change:+.2f}",
        ]
        verdict = "passed" if accuracy.passed else "FAILED"
        rows.append(f'<tr>{_tds(figures)}<td class="{verdict.lower()}">{verdict}</td></tr>')
    heads = [
        "file", "precision", "MiB", "relative error", "least cosine", "k-NN", "change, points", "verdict",
    ]  # fmt: skip
    return (
        "<p>Each file's outputs against Keras' in float32 on the same images, as <code>swav-tf verify</code> "
        f"found them.</p>{_table(heads, rows)}"
    )


def _machine(benchmark: Benchmark) -> str:
    machine, settings = benchmark.machine, benchmark.settings
    facts = {
        "CPU": f"{machine.cpu}, {machine.cores} cores"
        + ("" if machine.cpu_clock_mhz is None else f", {machine.cpu_clock_mhz:,.0f} MHz"),
        "instruction sets": ", ".join(machine.cpu_flags) or "-",
        "memory": "-" if machine.memory_gib is None else f"{machine.memory_gib:g} GiB",
        "GPU": "; ".join(f"{g.name}, {g.memory_mib:,.0f} MiB, driver {g.driver}" for g in machine.gpus)
        or "none",
        "load before": "-" if machine.load is None else f"{machine.load:g} processes wanted to run",
        "threads": f"{settings.threads}" if settings.threads else "one a core",
        "system": f"{machine.system}, Python {machine.python}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "timing": f"at least {settings.seconds:g} s and {settings.runs:,} runs, at most {settings.max_seconds:g} s, "
        + ("1 process" if settings.rounds == 1 else f"{settings.rounds} processes in turn"),
    }
    rows = [f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items()]
    text = f'<div class="wide"><table class="facts">{"".join(rows)}</table></div>'
    if benchmark.peaks:
        limits = [
            f"<tr>{_tds([p.device, p.precision, f'{p.gflops:,.0f}', f'{p.gbytes:,.1f}'])}</tr>"
            for p in benchmark.peaks
        ]
        text += "<h3>Its measured limits</h3>" + _table(
            ["processor", "precision", "10⁹ operations/s", "10⁹ bytes/s"], limits
        )
    return text


def _definitions(benchmark: Benchmark) -> str:
    runners = dict.fromkeys(cell.runner for cell in benchmark.cells)
    words = {
        **{runner: f"{RUNNERS[runner].meaning}." for runner in runners if runner in RUNNERS},
        **DEFINITIONS,
    }
    entries = [f"<dt>{_text(word)}</dt><dd>{_text(meaning)}</dd>" for word, meaning in words.items()]
    return f"<dl>{''.join(entries)}</dl>"


DEFINITIONS: Final = {
    "cell": "One model by one runner in one precision at one batch size, in a process of its own.",
    "run": "One call with one batch, timed from its start until its result is there. The warm-up's are not counted.",
    "images/s": "The batch over the median time of a run.",
    "±": "Twice the standard error of images/s: 95 % of repetitions of the whole benchmark would lie within. From the "
    "spread of 20 consecutive blocks of runs, and from process to process: measured with --rounds, else taken as 2 %.",
    "p50, p90, p95, p99": "50, 90, 95, 99 % of runs were quicker. A percentile is given only when at least 10 runs lie "
    "beyond it: p90 takes 100 runs, p95 200, p99 1,000. The median is always given.",
    "from host": "From uint8 images in the host's memory to features in the host's memory, with all copies and "
    "preparation between.",
    "from GPU": "The same with input and outputs left in the GPU's memory.",
    "host MiB": "The most memory that the cell's process held at once: interpreter, libraries, model, batch.",
    "GPU MiB": "Memory of the GPU in use at the end of the timing more than before the model was opened.",
    "k-NN": "Share of labelled images whose class the 20 nearest others (by cosine of this file's features) vote for.",
    "relative error": "L2 norm of the difference from Keras' outputs over that of Keras' outputs.",
    "least cosine": "Of the features of one image with Keras' for it, the worst image.",
    "bound by": "transfer: copies between host and GPU take half of the time or more. launch: what every call costs "
    "whatever the batch does; it follows from a line through the times of all batches. Else compute or memory: the "
    "lower of the two roofs below. The percentage is the share of the time.",
    "roofline": "Images/s over what the machine would allow if only arithmetic and memory cost time. "
    "Arithmetic: operations of convolutions and matrix products (two for each product) at the speed of a large matrix "
    "product, measured on this machine in the same precision. Memory: every such operator's input, output and weights "
    "once, at the speed of a large element-wise maximum. Above 100 % is possible: data may stay in caches, and some "
    "algorithms need fewer products.",
    "short": "Fewer than 100 runs or 3 seconds.",
    "unstable": "The standard deviation of the runs is more than 10 % of their mean.",
    "busy": "Other processes took more than 10 % of all cores while the cell was timed.",
    "throttled": "The GPU ran below its clock at the end of the timing, for power or heat.",
}


# === Parts ===


def _rows(ok: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells that differ by the batch alone, by their name, smallest batch first."""
    rows: dict[str, list[Cell]] = {}
    for cell in sorted(ok, key=lambda cell: cell.batch):
        rows.setdefault(_name(cell, ok), []).append(cell)
    return rows


def _colour(row: str, rows: dict[str, list[Cell]]) -> int:
    return list(sorted(rows)).index(row) % COLOURS


def _name(cell: Cell, cells: Sequence[Cell]) -> str:
    several = len({other.model for other in cells}) > 1
    return " ".join([*([cell.model] if several else []), cell.runner, cell.precision])


def _same(cell: Cell) -> tuple[str, int, str]:
    return cell.runner, cell.batch, cell.model


def _speed(cell: Cell) -> float:
    return cell.best.images_per_second if cell.best else 0.0


def _time(timing: Timing | None) -> str:
    return "-" if timing is None else _ms(timing.p50_ms)


def _title(cell: Cell) -> str:
    assert cell.best is not None
    return (
        f"{cell.runner} {cell.precision}, batch {cell.batch}: {_speed(cell):,.1f} images/s, "
        f"{_ms(cell.best.p50_ms)} ms a call" + (f" ({'; '.join(cell.marks)})" if cell.marks else "")
    )


def _accuracies(benchmark: Benchmark) -> dict[str, Accuracy | None]:
    return {model.file: model.accuracy for model in benchmark.models}


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


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{_text(text)}</th>" for text in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _class(name: str, wanted: bool) -> str:
    return f' class="{name}"' if wanted else ""


def _tds(texts: Sequence[str]) -> str:
    return "".join(f"<td>{_text(text)}</td>" for text in texts)


def _ms(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:,.3f}" if ms < 10 else f"{ms:,.1f}"


def _mib(mib: float | None) -> str:
    return "-" if mib is None else f"{mib:,.0f}"


def _text(text: str) -> str:
    return html.escape(text)
