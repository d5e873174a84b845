"""From the times of runs to the figures of a cell: throughput, percentiles, error and marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from evaluate.benchmark.schema import Cell, Timing

BEYOND: Final = 10  # samples that must lie beyond a percentile
BLOCKS: Final = 20
MEDIAN_FACTOR: Final = 1.2533  # standard error of a median over that of a mean, for normal samples
BETWEEN_PROCESSES: Final = 0.02  # relative standard deviation; one process alone cannot measure it
# Limits of the marks, see docs/benchmark.md.
STANDARD_SECONDS: Final = 3.0
STANDARD_RUNS: Final = 100
VARIATION: Final = 0.1
OTHERS: Final = 0.1


def timing_of(milliseconds: Sequence[float], *, warmup_runs: int, batch: int) -> Timing:
    """Return the figures of at least one run."""
    runs = np.asarray(milliseconds, np.float64)
    median = float(np.median(runs))
    return Timing(
        runs=len(runs),
        seconds=float(runs.sum()) / 1000,
        warmup_runs=warmup_runs,
        images_per_second=1000 * batch / median,
        images_per_second_error=relative_error(runs),
        p50_ms=median,
        p90_ms=percentile(runs, 90),
        p95_ms=percentile(runs, 95),
        p99_ms=percentile(runs, 99),
        mean_ms=float(runs.mean()),
        min_ms=float(runs.min()),
        max_ms=float(runs.max()),
        variation=float(runs.std(ddof=1) / runs.mean()) if len(runs) > 1 else 0.0,
    )


def percentile(runs: np.ndarray, percent: float) -> float | None:
    """Return a percentile of times, None unless BEYOND of them lie beyond it."""
    if len(runs) < round(BEYOND / (1 - percent / 100)):
        return None
    return float(np.percentile(runs, percent))


def relative_error(runs: np.ndarray) -> float:
    """Return the relative standard error of the median time of a run, over repetitions of the benchmark.

    Consecutive runs are correlated: a busy second slows many of them. Means of consecutive blocks are nearly
    independent, so the error follows from their spread, and from an assumed one between processes.
    """
    blocks = [block.mean() for block in np.array_split(runs, min(BLOCKS, len(runs)))]
    if len(blocks) < 2:
        return BETWEEN_PROCESSES
    within = MEDIAN_FACTOR * np.std(blocks, ddof=1) / np.sqrt(len(blocks)) / np.median(blocks)
    return float(np.hypot(within, BETWEEN_PROCESSES))


def marks_of(cell: Cell) -> list[str]:
    """Return the reasons to trust a cell's figures less."""
    marks = []
    for where, timing in (("host", cell.host), ("device", cell.device)):
        if timing is None:
            continue
        which = f"{where}: " if cell.host and cell.device else ""
        if timing.runs < STANDARD_RUNS or timing.seconds < STANDARD_SECONDS:
            marks.append(f"{which}short, {timing.runs:,} runs in {timing.seconds:.1f} s")
        if timing.variation > VARIATION:
            marks.append(f"{which}unstable, runs vary by {100 * timing.variation:.0f} %")
    if cell.others_cpu_share is not None and cell.others_cpu_share > OTHERS:
        marks.append(f"busy, other processes used {100 * cell.others_cpu_share:.0f} % of the CPU")
    if cell.gpu_throttling:
        marks.append(f"throttled, {cell.gpu_throttling}")
    return marks


def disturbed(cell: Cell) -> bool:
    """Return whether other processes, the GPU's limits or varying runs disturbed a cell; a short one may be right."""
    words = [mark.removeprefix("host: ").removeprefix("device: ") for mark in cell.marks]
    return any(word.startswith(("busy", "throttled", "unstable")) for word in words)
