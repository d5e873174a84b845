"""Figures of a cell: throughput, percentiles, marks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from evaluate.benchmark.schema import Cell, Conditions, Memory, Timing
from evaluate.benchmark.worker import Answer, Samples

BEYOND: Final = 10  # samples that must lie beyond a percentile
BLOCKS: Final = 20
MEDIAN_FACTOR: Final = 1.2533  # standard error of a median over that of a mean, for normal samples


def runs_needed(percentile: float) -> int:
    """Runs from which on a percentile is given: as many that BEYOND of them lie beyond it."""
    return round(BEYOND / (1 - percentile / 100))


def percentile_ms(samples: Sequence[float], percentile: float) -> float | None:
    """A percentile of times, linearly interpolated; None for fewer than `runs_needed` of them.

    Args:
        samples: times of single runs, milliseconds.
        percentile: 0 to 100, exclusive.
    """
    if len(samples) < runs_needed(percentile):
        return None
    return float(np.percentile(np.asarray(samples, np.float64), percentile))


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean; 0 for one sample."""
    values = np.asarray(samples, np.float64)
    return float(values.std(ddof=1) / values.mean()) if len(values) > 1 else 0.0


def block_means(samples: Sequence[float], *, blocks: int = BLOCKS) -> list[float]:
    """Means of consecutive parts of almost the same length, fewer for fewer samples.

    Runs that follow each other are alike (a busy second slows many of them), so single runs would
    look like more evidence than they are; means of parts are nearly independent.
    """
    values = np.asarray(samples, np.float64)
    return [float(part.mean()) for part in np.array_split(values, min(blocks, len(values)))]


def relative_error(rounds: Sequence[Sequence[float]], *, between: float) -> float:
    """Standard error of a median latency, as a share of it.

    Within a process it follows from the spread of the blocks; from one process to the next, from that of
    the rounds' medians, or, of one round only, from what is assumed.

    Args:
        rounds: block means of each process, milliseconds.
        between: standard deviation from process to process that is assumed for one round, a share.
    """
    medians = np.array([np.median(blocks) for blocks in rounds])
    within = [
        (MEDIAN_FACTOR * np.std(blocks, ddof=1) / np.sqrt(len(blocks)) if len(blocks) > 1 else 0.0)
        for blocks in rounds
    ]
    inside = float(np.sqrt(np.mean(np.square(within / medians)) / len(rounds)))
    spread = between if len(rounds) == 1 else float(medians.std(ddof=1) / medians.mean())
    return float(np.hypot(inside, spread / np.sqrt(len(rounds))))


def fixed_and_per_image(batches: Sequence[int], latencies_ms: Sequence[float]) -> tuple[float, float] | None:
    """The cost of a call and of an image: latency = fixed + batch x per_image, by least relative squares.

    Args:
        batches: numbers of images.
        latencies_ms: of a call with so many.

    Returns:
        Both in milliseconds and >= 0; None for fewer than two different batches.
    """
    if len(set(batches)) < 2:
        return None
    b, t = np.asarray(batches, np.float64), np.asarray(latencies_ms, np.float64)
    # Divided by t: the small batches, where the fixed cost shows, would else weigh nothing.
    columns = np.stack([1 / t, b / t], axis=1)
    fixed, per_image = np.linalg.lstsq(columns, np.ones(len(t)), rcond=None)[0]
    if fixed < 0:
        return 0.0, float(np.sum(b / t) / np.sum((b / t) ** 2))
    if per_image < 0:
        return float(np.sum(1 / t) / np.sum((1 / t) ** 2)), 0.0
    return float(fixed), float(per_image)


# What a cell is marked for: docs/benchmark.md.
STANDARD_SECONDS: Final = 3.0
STANDARD_RUNS: Final = 100
VARIATION: Final = 0.1
OTHERS: Final = 0.1
# From one process to the next the same code differs by about this, where it is not measured by --rounds.
BETWEEN_PROCESSES: Final = 0.02
LEAST_COSINE: Final = {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}


def cell_of(cell: Cell, answers: Sequence[Answer]) -> Cell:
    """A cell with the figures of its rounds.

    Args:
        cell: as it was planned.
        answers: of its rounds so far, at least one.
    """
    if error := next((answer.error for answer in answers if answer.error is not None), None):
        return cell.model_copy(update={"status": "failed", "reason": error.strip()})
    first = answers[0]
    host = timing_of([a.host for a in answers if a.host is not None], cell.batch)
    device = timing_of([a.device for a in answers if a.device is not None], cell.batch)
    cosine = first.feature_cosine
    figures = {
        "host": host,
        "device": device,
        "memory": Memory(
            host_peak_mib=first.host_peak_mib, host_before_mib=first.host_before_mib, gpu_mib=first.gpu_mib
        ),
        "conditions": Conditions(
            load=_greatest(answer.load for answer in answers),
            others_cpu_share=_greatest(answer.others_cpu_share for answer in answers),
            gpu_clock_mhz=first.gpu_clock_mhz,
            gpu_throttling=next((a.gpu_throttling for a in answers if a.gpu_throttling), None),
        ),
        "feature_cosine": cosine,
        "cuda_graph": first.cuda_graph,
    }
    if cosine is not None and cosine < LEAST_COSINE[cell.precision]:
        reason = f"it does not compute the model's features: their cosine with Keras' is {cosine:.4f}"
        return cell.model_copy(update={"status": "failed", "reason": reason, **figures})
    measured = cell.model_copy(update={"status": "ok", "reason": None, **figures})
    return measured.model_copy(update={"marks": (*first.notes, *marks_of(measured))})


def timing_of(rounds: Sequence[Samples], batch: int) -> Timing | None:
    """The figures of all rounds' runs; None of no round."""
    if not rounds:
        return None
    blocks = [[round(mean, 5) for mean in block_means(samples.ms)] for samples in rounds]
    runs = [ms for samples in rounds for ms in samples.ms]
    p90, p95, p99 = (percentile_ms(runs, percentile) for percentile in (90, 95, 99))
    median = statistics.median(runs)
    return Timing(
        runs=len(runs),
        seconds=sum(runs) / 1000,
        warmup_runs=sum(samples.warmup_runs for samples in rounds),
        images_per_second=1000 * batch / median,
        images_per_second_error=relative_error(blocks, between=BETWEEN_PROCESSES),
        p50_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(np.mean(runs)),
        min_ms=min(runs),
        max_ms=max(runs),
        variation=coefficient_of_variation(runs),
        rounds_ms=tuple(tuple(means) for means in blocks),
    )


def marks_of(cell: Cell) -> list[str]:
    """Why a cell's figures deserve less trust, in words."""
    marks = []
    for where, timing in (("host", cell.host), ("device", cell.device)):
        if timing is None:
            continue
        which = f"{where}: " if cell.host and cell.device else ""
        if timing.runs < STANDARD_RUNS or timing.seconds < STANDARD_SECONDS:
            marks.append(f"{which}short, {timing.runs:,} runs in {timing.seconds:.1f} s")
        if timing.variation > VARIATION:
            marks.append(f"{which}unstable, runs vary by {100 * timing.variation:.0f} %")
    conditions = cell.conditions or Conditions()
    if (share := conditions.others_cpu_share) is not None and share > OTHERS:
        marks.append(f"busy, others took {100 * share:.0f} % of the CPU")
    if conditions.gpu_throttling:
        marks.append(f"throttled, nvidia-smi says {conditions.gpu_throttling}")
    return marks


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
