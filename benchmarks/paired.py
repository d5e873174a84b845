"""A against B on a noisy machine: in turn, many times, and the median of the paired ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    ratio: float  # median of B's time / A's time: how many times faster A is
    low: float  # first quartile of the ratios
    high: float  # third quartile
    pairs: int
    a_ms: float  # median time of A, milliseconds
    b_ms: float
    load: float  # other processes that were running, load average of one minute


def compare(
    a: Work,
    b: Work,
    *,
    pairs: int,
    clock: Callable[[], float] = time.process_time,
    pause_seconds: float = 0.0,
) -> Comparison:
    """Times of A and B, each run once before. `clock` is CPU time of all threads, or wall time.

    Runtimes' threads go on spinning for a while after a run, which would count against the other side: a pause
    before each run lets them end.
    """
    a()
    b()
    times_a, times_b = [], []
    for pair in range(pairs):
        order = ((a, times_a), (b, times_b)) if pair % 2 == 0 else ((b, times_b), (a, times_a))
        for work, times in order:
            time.sleep(pause_seconds)
            start = clock()
            work()
            times.append(clock() - start)
    ratios = [slow / fast for fast, slow in zip(times_a, times_b, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Comparison(
        ratio=median,
        low=low,
        high=high,
        pairs=pairs,
        a_ms=1000 * statistics.median(times_a),
        b_ms=1000 * statistics.median(times_b),
        load=os.getloadavg()[0],
    )
