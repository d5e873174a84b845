"""Time parts of a step on random images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import cv2
import numpy as np

from swav_tf.data.workers import cpu_seconds
from swav_tf.recipe.pretraining import Recipe

WIDTH, HEIGHT, BYTES = 500, 375, 110_000  # of ImageNet's files, typically
QUALITY: Final = 92
DIFFERENT: Final = 8


class RandomPhotos:
    """JPEG files in memory, of ImageNet's size for crops of 224 pixels and in proportion for others.

    Args:
        recipe: its largest crop gives the size.
        count: so many images they stand for; there are DIFFERENT ones.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, count: int) -> None:
        scale = max(group.size for group in recipe.crops) / 224
        self.width, self.height = max(16, round(WIDTH * scale)), max(16, round(HEIGHT * scale))
        self.count = count
        generator = np.random.default_rng(0)
        target = BYTES * self.width * self.height / (WIDTH * HEIGHT)
        self._files = [_photo(generator, self.width, self.height, target) for _ in range(DIFFERENT)]

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        """One of the files."""
        return self._files[index % DIFFERENT]

    def label(self, index: int) -> int:
        """-1: they have no classes."""
        return -1

    def image_name(self, index: int) -> str:
        """Its number."""
        return f"random/{index}"

    def __str__(self) -> str:
        """What they are, for messages."""
        kilobytes = sum(map(len, self._files)) / DIFFERENT / 1000
        return f"random JPEGs of {self.width} x {self.height} px and {kilobytes:.0f} KB, in memory"


def _photo(generator: np.random.Generator, width: int, height: int, size: float) -> bytes:
    """Soft colours, and the grain that brings the file to that size."""
    colours = generator.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    soft = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = generator.normal(size=(height, width, 1))
    low, high, file = 0.0, 60.0, b""
    for _ in range(10):
        strength = (low + high) / 2
        pixels = np.clip(soft + strength * grain, 0, 255).astype(np.uint8)
        file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        low, high = (strength, high) if len(file) < size else (low, strength)
    return file


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
