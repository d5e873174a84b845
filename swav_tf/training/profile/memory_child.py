"""A few steps in a process of its own, for its peak of memory: `python -m swav_tf.training.profile.memory_child`.

Reads a recipe as JSON from stdin; writes one line of JSON to stdout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STEPS = 2


def resident_megabytes(key: str) -> float:
    """`VmRSS`, the memory of this process, or `VmHWM`, the most it ever was; 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {key}")


def main() -> None:
    """Builds, steps, tells."""
    from swav_tf.recipe.pretraining import Recipe

    recipe = Recipe.model_validate_json(sys.stdin.read())

    import tensorflow as tf

    from swav_tf.training.build import build_swav
    from swav_tf.training.cluster import build_strategy
    from swav_tf.training.profile.fixed_crops import fixed_parts

    strategy = build_strategy(recipe.train)
    gpus = tf.config.list_logical_devices("GPU")
    try:
        before = 0.0 if gpus else resident_megabytes("VmRSS")
        with strategy.scope():
            model = build_swav(recipe)
        parts = fixed_parts(recipe, strategy)
        step = model.make_train_function()
        for _ in range(STEPS):
            step(iter(parts))
        if gpus:
            peak = max(tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in range(len(gpus)))
            found = {"fits": True, "peak_mb": peak / 1e6, "before_mb": 0.0}
        else:
            found = {"fits": True, "peak_mb": resident_megabytes("VmHWM"), "before_mb": before}
    except tf.errors.ResourceExhaustedError:
        found = {"fits": False, "peak_mb": 0.0, "before_mb": 0.0}
    told = found | {"on_gpu": bool(gpus), "replicas": strategy.num_replicas_in_sync}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
