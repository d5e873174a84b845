"""What the time of each cell goes into: that takes all batches, and the machine's limits. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluate.benchmark import figures
from evaluate.benchmark.roofline import Limits, what_bounds
from evaluate.benchmark.runner_facts import RUNNERS
from evaluate.benchmark.schema import Cell, Explanation, Peak
from evaluate.benchmark.work import Work


def explained(cells: Sequence[Cell], *, works: Mapping[str, Work], peaks: Sequence[Peak]) -> list[Cell]:
    """The cells, those that went well with what bounds them.

    Args:
        cells: of one benchmark.
        works: arithmetic of the ONNX files among them, by path.
        peaks: the machine's limits.
    """
    return [
        cell
        if cell.best is None
        else cell.model_copy(update={"explanation": _explanation(cell, cells, works, peaks)})
        for cell in cells
    ]


def _explanation(
    cell: Cell, cells: Sequence[Cell], works: Mapping[str, Work], peaks: Sequence[Peak]
) -> Explanation:
    assert cell.best is not None
    transfer = None
    if cell.host and cell.device:
        transfer = max(0.0, 1 - cell.device.p50_ms / cell.host.p50_ms)
    share = by_memory = None
    work, limits = _work(cell, cells, works), _limits(cell, peaks)
    if work is not None and limits is not None:
        share = cell.best.images_per_second / limits.attainable(work, cell.precision, cell.batch)
        by_memory = limits.by_memory(work, cell.precision, cell.batch)
    fixed = _fixed_share(cell, cells)
    return Explanation(
        bound=what_bounds(transfer_share=transfer, fixed_share=fixed, by_memory=by_memory),
        transfer_share=transfer,
        fixed_share=fixed,
        roofline_share=share,
    )


def _fixed_share(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """What a call costs whatever the batch, over this cell's time; by the other batches of its row."""
    row = [other for other in cells if other.key[:3] == cell.key[:3]]
    timed = [(other.batch, other.best.p50_ms) for other in row if other.best is not None]
    line = figures.fixed_and_per_image([batch for batch, _ in timed], [ms for _, ms in timed])
    if line is None or cell.best is None:
        return None
    return min(1.0, line[0] / cell.best.p50_ms)


def _work(cell: Cell, cells: Sequence[Cell], works: Mapping[str, Work]) -> Work | None:
    """The arithmetic of its file; an engine or a run does that of the same model's ONNX file."""
    of_model = sorted({other.file for other in cells if other.model == cell.model and other.file})
    return next((works[file] for file in filter(None, [cell.file, *of_model]) if file in works), None)


def _limits(cell: Cell, peaks: Sequence[Peak]) -> Limits | None:
    where = ("cuda" if RUNNERS[cell.runner].gpu else "cpu", cell.precision)
    return next(
        (
            Limits(peak.gflops * 1e9, peak.gbytes * 1e9)
            for peak in peaks
            if (peak.device, peak.precision) == where
        ),
        None,
    )
