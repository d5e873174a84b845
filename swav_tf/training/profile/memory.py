"""Measure the peak memory of a training step in a separate process.

`python -m swav_tf.training.profile.memory` is that process: it reads a recipe as JSON from stdin and writes one
line of JSON to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.pretraining import Recipe

STEPS = 2
OUT_OF_MEMORY = 3  # exit code of the process


@dataclass(frozen=True)
class Peak:
    """The memory that a process of a few steps took.

    Attributes:
        peak_mb: on GPUs what TensorFlow took of the fullest, else the complete process; 10^6 bytes.
        before_mb: the share of it before a model exists (libraries); 0 on a GPU.
        on_gpu: whether GPU memory was measured.
    """

    peak_mb: float
    before_mb: float
    on_gpu: bool


def measure_peak(recipe: Recipe) -> Peak:
    """Run two steps of a recipe in a new process.

    Raises:
        SwavError: the recipe does not fit the memory, or the process failed.
    """
    child = subprocess.run(
        [sys.executable, "-m", "swav_tf.training.profile.memory"],
        input=recipe.model_dump_json(),
        capture_output=True,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        check=False,
    )
    # The kernel kills it, or an allocation in C++ aborts it.
    if child.returncode in (OUT_OF_MEMORY, -signal.SIGKILL, -signal.SIGABRT):
        raise SwavError(
            f"A batch of {recipe.train.batch_size} in {recipe.train.accumulation_steps} part(s) does not fit the "
            "memory. Remedies: more train.accumulation_steps, a smaller train.batch_size, "
            "train.precision=mixed_float16 on a GPU."
        )
    if child.returncode:
        raise SwavError(
            f"The process that measures memory failed (exit code {child.returncode}): "
            f"{' '.join(child.stderr.split())[-600:]}"
        )
    return Peak(**json.loads(child.stdout.splitlines()[-1]))


def _resident_mb(field: str) -> float:
    """Return VmRSS, the memory of this process, or VmHWM, its peak; 10^6 bytes."""
    # Not getrusage: after a fork its peak includes the parent's.
    [line] = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


def _run_steps(recipe: Recipe) -> Peak:
    import tensorflow as tf

    from swav_tf.training.build import build_swav
    from swav_tf.training.cluster import build_strategy
    from swav_tf.training.profile.inputs import fixed_parts

    strategy = build_strategy(recipe.train)
    gpus = tf.config.list_logical_devices("GPU")
    before = 0.0 if gpus else _resident_mb("VmRSS")
    try:
        with strategy.scope():
            model = build_swav(recipe)
        parts, step = fixed_parts(recipe, strategy), model.make_train_function()
        for _ in range(STEPS):
            step(iter(parts))
    except tf.errors.ResourceExhaustedError:
        sys.exit(OUT_OF_MEMORY)
    if gpus:
        peaks = [tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in range(len(gpus))]
        return Peak(max(peaks) / 1e6, before, on_gpu=True)
    return Peak(_resident_mb("VmHWM"), before, on_gpu=False)


if __name__ == "__main__":
    print(json.dumps(asdict(_run_steps(Recipe.model_validate_json(sys.stdin.read())))), flush=True)
