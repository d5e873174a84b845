"""From the times of single runs to the figures of a cell, and why they deserve less trust. No TensorFlow."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from evaluate.benchmark import latency
from evaluate.benchmark.schema import Cell, Conditions, Memory, Timing
from evaluate.benchmark.worker import Answer, Samples

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
    blocks = [[round(mean, 5) for mean in latency.block_means(samples.ms)] for samples in rounds]
    runs = [ms for samples in rounds for ms in samples.ms]
    p90, p95, p99 = (latency.percentile_ms(runs, percentile) for percentile in (90, 95, 99))
    median = statistics.median(runs)
    return Timing(
        runs=len(runs),
        seconds=sum(runs) / 1000,
        warmup_runs=sum(samples.warmup_runs for samples in rounds),
        images_per_second=1000 * batch / median,
        images_per_second_error=latency.relative_error(blocks, between=BETWEEN_PROCESSES),
        p50_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(np.mean(runs)),
        min_ms=min(runs),
        max_ms=max(runs),
        variation=latency.coefficient_of_variation(runs),
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
