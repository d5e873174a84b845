"""How much memory a step takes, measured in a process of its own. No TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.pretraining import Recipe

SECONDS = 1800  # for one process


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


def measure_peak(recipe: Recipe) -> Peak:
    """Runs two steps of a recipe in a new process.

    Raises:
        SwavError: it failed, but for want of memory.
    """
    command = [sys.executable, "-m", "swav_tf.training.profile.memory_child"]
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
