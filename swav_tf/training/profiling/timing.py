"""Times of what is done again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from swav_tf.data.crop_makers.crop_processes import cpu_seconds

Element = TypeVar("Element")


@dataclass(frozen=True)
class Timing:
    """Means over the times that something was done.

    Attributes:
        ms: wall time, milliseconds.
        cpu_ms: CPU time of all threads of this process, and of those that make crops for it.
        spread: half the distance of the quartiles, a share of the median.
    """

    ms: float
    cpu_ms: float
    spread: float


def timed(work: Callable[[], object], times: int) -> Timing:
    """Does it so many times, >= 1."""
    walls, cpu = [], cpu_seconds()
    for _ in range(times):
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    return timing_of(walls, cpu_seconds() - cpu)


def timing_of(walls: list[float], cpu: float) -> Timing:
    """Of single wall times and the CPU time of all of them, seconds."""
    low, median, high = statistics.quantiles(walls, n=4) if len(walls) > 1 else [walls[0]] * 3
    return Timing(
        ms=1000 * statistics.fmean(walls), cpu_ms=1000 * cpu / len(walls), spread=(high - low) / 2 / median
    )


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least wall time of each, milliseconds: they are compared, and what else the machine does can only add."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * min(values) for name, values in times.items()}


class Waited(Generic[Element]):
    """An iterator that adds up how long its elements were waited for."""

    def __init__(self, elements: Iterator[Element]) -> None:
        self.elements = elements
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Element]:
        return self

    def __next__(self) -> Element:
        start = time.perf_counter()
        element = next(self.elements)
        self.seconds += time.perf_counter() - start
        return element
