"""The tables: every cell, whether the features survived the export, and the machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from evaluate.benchmark.report.elements import milliseconds, row, table
from evaluate.benchmark.schema import Accuracy, Benchmark, Cell, Explanation, Model, Timing

FIGURES: Final = (
    "from", "images/s", "±", "p50 ms", "p90", "p95", "p99", "runs", "host MiB", "GPU MiB", "k-NN", "bound by",
    "roofline",
)  # fmt: skip


def cells(benchmark: Benchmark) -> str:
    """The cells that were measured, a row for each way of timing, and those that were not, with the reason."""
    several = benchmark.several_models
    on_gpu = any(cell.memory and cell.memory.gpu_mib is not None for cell in benchmark.cells)
    columns = [column for column in FIGURES if on_gpu or column != "GPU MiB"]
    heads = [*(["model"] if several else []), "runner", "precision", "batch", *columns]
    rows = []
    for cell in benchmark.cells:
        if cell.best is None:
            continue
        first = [*([cell.model] if several else []), cell.runner, cell.precision, f"{cell.batch}"]
        for where, timing in (("GPU", cell.device), ("host", cell.host)):
            if timing is not None:
                figures = _figures(cell, timing, where, benchmark.accuracy_of(cell))
                texts = [*first, *(figures[column] for column in columns)]
                rows.append(row(texts, kind="marked" if cell.marks else ""))
        if cell.marks:
            words = escape("; ".join(cell.marks))
            rows.append(f'<tr class="marks"><td colspan="{len(heads)}">{words}</td></tr>')
    return (table(heads, rows) if rows else "") + _not_measured(benchmark.cells, several)


def _figures(cell: Cell, timing: Timing, where: str, accuracy: Accuracy | None) -> dict[str, str]:
    """The columns FIGURES."""
    memory, explained = cell.memory, cell.explanation if timing is cell.best else None
    share = None if explained is None else explained.roofline_share
    figures = [
        where,
        f"{timing.images_per_second:,.{1 if timing.images_per_second < 1000 else 0}f}",
        f"{200 * timing.images_per_second_error:.0f} %",
        *(milliseconds(ms) for ms in (timing.p50_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms)),
        f"{timing.runs:,}",
        _mebibytes(memory.host_peak_mib if memory else None),
        _mebibytes(memory.gpu_mib if memory else None),
        "-" if accuracy is None or accuracy.knn is None else f"{100 * accuracy.knn:.2f} %",
        "-" if explained is None else _bound(explained),
        "-" if share is None else f"{100 * share:.0f} %",
    ]
    return dict(zip(FIGURES, figures, strict=True))


def _bound(explained: Explanation) -> str:
    shares = {"transfer": explained.transfer_share, "launch": explained.fixed_share}
    share = shares.get(explained.bound or "")
    return (explained.bound or "-") + ("" if share is None else f" {100 * share:.0f} %")


def _mebibytes(mib: float | None) -> str:
    return "-" if mib is None else f"{mib:,.0f}"


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
        row(
            [status, *([model] if several else []), runner, precision, ", ".join(map(str, batches)), reason],
            kind=status,
        )
        for (status, model, runner, precision, reason), batches in groups.items()
    ]
    heads = ["", *(["model"] if several else []), "runner", "precision", "batches", "reason"]
    return f"<h3>Not measured</h3>{table(heads, rows)}"


def parity(models: Sequence[Model]) -> str:
    """How near each file is to Keras, which is the measure."""
    heads = [
        "file", "precision", "MiB", "relative error", "least cosine", "k-NN", "change, points", "verdict",
    ]  # fmt: skip
    rows = [_parity_row(model) for model in models if model.kind != "run"]
    return (
        "<p>Each file's outputs against Keras' in float32 on the same images, as <code>swav-tf verify</code> "
        f"found them.</p>{table(heads, rows)}"
    )


def _parity_row(model: Model) -> str:
    texts = [f"{model.name}/{Path(model.file).name}", model.precision, f"{model.bytes / 2**20:,.1f}"]
    accuracy = model.accuracy
    if accuracy is None:
        return row(texts, last='<td colspan="5">not verified</td>')
    change = accuracy.knn_change_points
    texts += [
        "-" if accuracy.relative_error is None else f"{accuracy.relative_error:.1e}",
        "-" if accuracy.cosine_min is None else f"{accuracy.cosine_min:.6f}",
        "-" if accuracy.knn is None else f"{100 * accuracy.knn:.2f} %",
        "-" if change is None else f"{change:+.2f}",
    ]
    verdict = "passed" if accuracy.passed else "FAILED"
    return row(texts, last=f'<td class="{verdict.lower()}">{verdict}</td>')


def machine(benchmark: Benchmark) -> str:
    """What the figures are of: hardware, versions, settings, and the limits that were measured."""
    where, settings = benchmark.machine, benchmark.settings
    facts = {
        "CPU": f"{where.cpu}, {where.cores} cores"
        + ("" if where.cpu_clock_mhz is None else f", {where.cpu_clock_mhz:,.0f} MHz"),
        "instruction sets": ", ".join(where.cpu_flags) or "-",
        "memory": "-" if where.memory_gib is None else f"{where.memory_gib:g} GiB",
        "GPU": "; ".join(f"{g.name}, {g.memory_mib:,.0f} MiB, driver {g.driver}" for g in where.gpus)
        or "none",
        "load before": "-" if where.load is None else f"{where.load:g} processes wanted to run",
        "threads": f"{settings.threads}" if settings.threads else "one per core",
        "system": f"{where.system}, Python {where.python}",
        "versions": ", ".join(f"{name} {version}" for name, version in where.versions.items()),
        "timing": f"at least {settings.seconds:g} s and {settings.runs:,} runs, at most {settings.max_seconds:g} s, "
        + ("1 process" if settings.rounds == 1 else f"{settings.rounds} processes in turn"),
    }
    rows = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()]
    text = f'<div class="wide"><table class="facts">{"".join(rows)}</table></div>'
    if benchmark.peaks:
        limits = [
            row([peak.device, peak.precision, f"{peak.gflops:,.0f}", f"{peak.gbytes:,.1f}"])
            for peak in benchmark.peaks
        ]
        heads = ["processor", "precision", "10⁹ operations/s", "10⁹ bytes/s"]
        text += f"<h3>Its measured limits</h3>{table(heads, limits)}"
    return text
