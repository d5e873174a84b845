"""What may be said of measured times: percentiles that the runs bear out, and how far chance carries them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

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
