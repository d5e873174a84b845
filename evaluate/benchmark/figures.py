"""From the times of runs to the figures of a cell: throughput, percentiles, errors and marks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from evaluate.benchmark.schema import Cell, Observed, Timing
from evaluate.benchmark.worker import Answer, Samples

BEYOND: Final = 10  # samples that must lie beyond a percentile
BLOCKS: Final = 20
MEDIAN_FACTOR: Final = 1.2533  # standard error of a median over that of a mean, for normal samples
BETWEEN_PROCESSES: Final = 0.02  # relative standard deviation, where --rounds does not measure it
# Limits of the marks and of correct features, see docs/benchmark.md.
STANDARD_SECONDS: Final = 3.0
STANDARD_RUNS: Final = 100
VARIATION: Final = 0.1
OTHERS: Final = 0.1
MIN_COSINE: Final = {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}


# === Statistics ===


def runs_needed(percentile: float) -> int:
    """Return the number of runs that puts BEYOND of them beyond a percentile."""
    return round(BEYOND / (1 - percentile / 100))


def percentile_ms(samples: Sequence[float], percentile: float) -> float | None:
    """Return a percentile (0 to 100) of times, None for fewer than `runs_needed` samples."""
    if len(samples) < runs_needed(percentile):
        return None
    return float(np.percentile(np.asarray(samples, np.float64), percentile))


def block_means(samples: Sequence[float]) -> list[float]:
    """Return the means of BLOCKS consecutive blocks of almost equal length.

    Consecutive runs are correlated: a busy second slows many of them. Means of blocks are nearly independent.
    """
    values = np.asarray(samples, np.float64)
    return [float(block.mean()) for block in np.array_split(values, min(BLOCKS, len(values)))]


def relative_error(rounds: Sequence[Sequence[float]], *, between: float) -> float:
    """Return the relative standard error of a median latency.

    Within a process it follows from the spread of the blocks, between processes from that of the rounds' medians. For a
    single round the relative standard deviation `between` processes is assumed.
    """
    medians = np.array([np.median(blocks) for blocks in rounds])
    within = [
        MEDIAN_FACTOR * np.std(blocks, ddof=1) / np.sqrt(len(blocks)) if len(blocks) > 1 else 0.0
        for blocks in rounds
    ]
    inside = float(np.sqrt(np.mean(np.square(within / medians)) / len(rounds)))
    spread = between if len(rounds) == 1 else float(medians.std(ddof=1) / medians.mean())
    return float(np.hypot(inside, spread / np.sqrt(len(rounds))))


# === Cells ===


def cell_of(planned: Cell, answers: Sequence[Answer]) -> Cell:
    """Return a planned cell with the figures of its rounds so far, at least one."""
    if error := next((answer.error for answer in answers if answer.error is not None), None):
        return planned.model_copy(update={"status": "failed", "reason": error.strip()})
    first = answers[0]
    observed = {name: getattr(first, name) for name in Observed.model_fields} | {
        "load": _greatest(answer.load for answer in answers),
        "others_cpu_share": _greatest(answer.others_cpu_share for answer in answers),
        "gpu_throttling": next((a.gpu_throttling for a in answers if a.gpu_throttling), None),
    }
    timings = {
        "host": timing_of([answer.host for answer in answers if answer.host], planned.batch),
        "device": timing_of([answer.device for answer in answers if answer.device], planned.batch),
    }
    measured = planned.model_copy(update={"status": "ok", "reason": None, **observed, **timings})
    cosine = measured.feature_cosine
    if cosine is not None and cosine < MIN_COSINE[measured.precision]:
        reason = f"its features are not the model's: their cosine with Keras' is {cosine:.4f}"
        return measured.model_copy(update={"status": "failed", "reason": reason})
    return measured.model_copy(update={"marks": (*first.notes, *marks_of(measured))})


def timing_of(rounds: Sequence[Samples], batch: int) -> Timing | None:
    """Return the figures of all rounds' runs, None without rounds."""
    if not rounds:
        return None
    blocks = [[round(mean, 5) for mean in block_means(samples.ms)] for samples in rounds]
    runs = [ms for samples in rounds for ms in samples.ms]
    median, mean = statistics.median(runs), statistics.fmean(runs)
    return Timing(
        runs=len(runs),
        seconds=sum(runs) / 1000,
        warmup_runs=sum(samples.warmup_runs for samples in rounds),
        images_per_second=1000 * batch / median,
        images_per_second_error=relative_error(blocks, between=BETWEEN_PROCESSES),
        p50_ms=median,
        p90_ms=percentile_ms(runs, 90),
        p95_ms=percentile_ms(runs, 95),
        p99_ms=percentile_ms(runs, 99),
        mean_ms=mean,
        min_ms=min(runs),
        max_ms=max(runs),
        variation=statistics.stdev(runs) / mean if len(runs) > 1 else 0.0,
        rounds_ms=tuple(tuple(means) for means in blocks),
    )


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


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
