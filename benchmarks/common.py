"""What the benchmarks share: measurements in pairs, rows of results, and photos."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluate.benchmark.machine import describe_machine
from swav_tf.data.image_source import ImageSource
from swav_tf.plumbing.files import atomic_write

T = TypeVar("T")

# === Measurements on a noisy machine: in turn, many times, and the median of the paired ratios ===


def in_turn(first: Callable[[], T], second: Callable[[], T], pairs: int) -> tuple[list[T], list[T]]:
    """Return the results of both, called in turn (A B B A ...) after one call of each that does not count."""
    first()
    second()
    results: tuple[list[T], list[T]] = ([], [])
    for pair in range(pairs):
        both = ((first, results[0]), (second, results[1]))
        for work, found in both if pair % 2 == 0 else both[::-1]:
            found.append(work())
    return results


def ratios(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return how many times faster the first is: median and quartiles of second / first; the times are seconds."""
    paired = [b / a for a, b in zip(first, second, strict=True)]
    low, median, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
    return {
        "ratio": median, "low": low, "high": high, "pairs": len(paired), "load": os.getloadavg()[0],
        "first_ms": 1000 * statistics.median(first), "second_ms": 1000 * statistics.median(second),
    }  # fmt: skip


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int,
    clock: Callable[[], float] = time.process_time,
    pause_seconds: float = 0.0,
) -> dict[str, Any]:
    """Return the ratios of two functions' times, by default CPU time of all threads.

    Threads of a runtime spin for a while after a run, which would count for the other side: a pause before each
    run lets them end.
    """

    def timed(work: Callable[[], object]) -> float:
        time.sleep(pause_seconds)
        start = clock()
        work()
        return clock() - start

    return ratios(*in_turn(lambda: timed(first), lambda: timed(second), pairs))


# === Rows of results ===


def documented_parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = documented_parser(description)
    parser.add_argument("--json", type=Path, help="write the rows here; other rows in the file are kept")
    return parser


def chosen(parser: argparse.ArgumentParser, rows: str, known: Sequence[str]) -> list[str]:
    """Return the names of a comma-separated list, or all of them."""
    names = list(known) if rows == "all" else rows.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"--rows must be of {', '.join(known)}. Received: {', '.join(sorted(unknown))}.")
    return names


class Rows:
    """Print rows as they are measured and write them to a JSON file, in which they replace rows of equal names."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows = json.loads(path.read_text())["rows"] if path and path.exists() else {}

    def add(self, name: str, target: str, found: dict[str, Any], *, per: int = 1, remark: str = "") -> None:
        """Add a row; times are divided by `per`, such as a number of images. The remark is for the terminal."""
        self.rows[name] = {"target": target, "per": per, "date": f"{datetime.now(UTC):%F}", **found}
        times = ""
        if "first_ms" in found:
            times = f"{found['first_ms'] / per:.2f} vs. {found['second_ms'] / per:.2f} ms"
        print(
            f"{name:72} {found['ratio']:6.3f}  [{found['low']:.3f}, {found['high']:.3f}]  target {target:7} "
            f"({times}{remark}, load {found['load']:.1f})",
            flush=True,
        )
        if self.path is not None:
            with atomic_write(self.path) as partial:
                results = {"machine": describe_machine().model_dump(), "rows": self.rows}
                partial.write_text(json.dumps(results, indent=1) + "\n")


# === Photos as ImageNet has them: JPEG files of 500 x 375 pixels and about 110 KB ===

WIDTH, HEIGHT, BYTES = 500, 375, 110_000


def photos(count: int) -> list[bytes]:
    """Return random cuts of scikit-learn's two photos, with the grain that gives that size at quality 92."""
    import cv2
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    originals = load_sample_images().images
    files = []
    for i in range(count):
        original = originals[i % 2]
        top, left = generator.integers(0, (original.shape[0] - HEIGHT + 1, original.shape[1] - WIDTH + 1))
        cut = original[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
        grain = generator.normal(size=(*cut.shape[:2], 1))
        low, high = 0.0, 40.0
        for _ in range(12):  # bisection: the file grows with the grain
            strength = (low + high) / 2
            pixels = np.clip(cut + strength * grain, 0, 255).astype(np.uint8)
            file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
            low, high = (strength, high) if len(file) < BYTES else (low, strength)
        files.append(file)
    return files


class Photos(ImageSource):
    """Files in memory as a source of images; not in a script, whose classes other processes cannot unpickle."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return self.files[index]

    def image_name(self, index: int) -> str:
        return str(index)
