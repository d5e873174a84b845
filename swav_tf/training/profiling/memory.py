"""How much memory a step takes, and the largest batch that fits; measured in processes of their own. No TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swav_tf.errors import SwavError
from swav_tf.recipe import Recipe

SECONDS = 1800  # for one process
MOST = 2**15  # images of one device; no search goes on beyond
PRECISION = 16  # the largest batch is found to 1/16 of itself


@dataclass(frozen=True)
class Peak:
    """What a process of a few steps held at most.

    Attributes:
        fits: it did not run out of memory; else the rest is 0.
        peak_mb: the most, 10^6 bytes: of a GPU what TensorFlow took of it, of a CPU all of the process.
        before_mb: of that, before there was a model (the libraries); 0 on a GPU.
        on_gpu: the fullest GPU is meant.
        replicas: that shared the batch.
    """

    fits: bool
    peak_mb: float
    before_mb: float
    on_gpu: bool
    replicas: int


@dataclass(frozen=True)
class LargestBatch:
    """Images that a device computes at once."""

    images: int
    estimated: bool  # from a line through two measurements; else found by trying


def measure_peak(recipe: Recipe) -> Peak:
    """Runs two steps of a recipe in a new process.

    Raises:
        SwavError: it failed, but for want of memory.
    """
    command = [sys.executable, "-m", "swav_tf.training.profiling.memory_child"]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    try:
        child = subprocess.run(
            command,
            input=recipe.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SwavError(
            f"Measuring the memory of batch_size {recipe.train.batch_size} took more than {SECONDS} s. Give a smaller "
            "train.batch_size, or leave out the memory: --no-memory."
        ) from None
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode == 0 and lines:
        found = json.loads(lines[-1])
        return Peak(**found)
    if child.returncode in (-signal.SIGKILL, -signal.SIGABRT):
        # The kernel ended it for want of memory, or an allocation in C++ failed.
        replicas = max(1, recipe.train.logical_cpus)
        return Peak(fits=False, peak_mb=0.0, before_mb=0.0, on_gpu=False, replicas=replicas)
    raise SwavError(
        f"The process that measures memory failed (exit code {child.returncode}): "
        f"{' '.join(child.stderr.split())[-600:]}"
    )


def largest_fitting(fits: Callable[[int], bool], *, start: int, most: int = MOST) -> int:
    """The largest number that fits, to 1/PRECISION of itself: doubled until one does not, then bisected.

    Args:
        fits: whether a number does; what is larger than one that does not fit does not either.
        start: is tried first, >= 1.
        most: no number beyond is tried.

    Returns:
        0 if not even 1 fits.
    """
    good, bad, trial = 0, most + 1, min(start, most)
    while bad - good > max(1, good // PRECISION):
        if fits(trial):
            good = trial
        else:
            bad = trial
        trial = min(2 * good, most) if bad > most and good < most else (good + bad) // 2
        if trial == good:
            break
    return good


def estimated_largest(smaller: tuple[int, float], larger: tuple[int, float], *, available_mb: float) -> int:
    """Images that fit by the line through two peaks, (images, MB).

    Raises:
        ValueError: they are of as many images, or memory does not grow with them.
    """
    per_image = (larger[1] - smaller[1]) / (larger[0] - smaller[0]) if larger[0] != smaller[0] else 0.0
    if per_image <= 0:
        raise ValueError(f"memory must grow with the batch; got {smaller} and {larger}")
    fixed = smaller[1] - per_image * smaller[0]
    return max(0, int((available_mb - fixed) // per_image))


def available_megabytes() -> float | None:
    """Memory that a new process could have: the machine's, or its container's; None where it is not told."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024 / 1e6)
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append((limit - used) / 1e6)
    except (OSError, ValueError):
        pass  # no container, or one without a limit
    return min(found) if found else None
