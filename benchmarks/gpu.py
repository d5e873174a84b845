"""Training steps on a GPU in their variants, and PyTorch's: images/s, launches, memory; one JSON.

    python -m benchmarks.gpu [--output gpu-training.json] [--batch 256] [--rows fp16,torch_fp16]

Needs TensorFlow with CUDA. PyTorch's row is left out where it is not installed. Each row is a process of its own
(benchmarks/step_worker.py) that steps on the same random crops on the device and has the GPU to itself. It takes half
a minute, nearly all of it TensorFlow's choice of kernels. A row that fails is recorded, and the others continue; the
exit code is then 1.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import chosen, documented_parser
from benchmarks.step import BASE, Worker
from evaluate.benchmark.machine import describe_machine
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.nvidia import no_gpu_reason

WARM_STEPS = 4  # traces, compiles, chooses kernels


@dataclass(frozen=True)
class Variant:
    """A kind of step, settings of the recipe, and variables of its process."""

    kind: str
    overrides: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


FP16, BF16 = "train.precision=mixed_float16", "train.precision=mixed_bfloat16"
# TensorFlow's default, which training overrides.
SEPARATE = {"TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT": "0"}

VARIANTS = {
    "fp16": Variant("swav", (FP16,)),
    "torch_fp16": Variant("torch", (FP16,)),
    "fp16_bare": Variant("bare", (FP16,)),
    "fp16_separate_bn": Variant("swav", (FP16,), SEPARATE),
    "bf16": Variant("swav", (BF16,)),
    "fp32": Variant("swav"),
}


def measure(worker: Worker, images: int, steps: int) -> dict[str, Any]:
    """Return images/s with the host waiting for each step, as `fit` does, and with the host running ahead."""
    begun = time.perf_counter()
    losses = [worker.ask("step")["loss"] for _ in range(WARM_STEPS)]
    warm = time.perf_counter() - begun
    low, median, high = statistics.quantiles([worker.ask("step")["wall_s"] for _ in range(steps)], n=4)
    ahead = worker.ask("many", count=steps)
    return {
        "batch": images,
        "images_per_second": images / median,
        "quartiles": [images / high, images / low],
        "step_ms": 1000 * median,
        "warm_up_s": warm,
        "losses": losses,
        "ahead_images_per_second": images * steps / ahead["wall_s"],
        "launch_ms": 1000 * ahead["launch_s"] / steps,
        "gpu_memory_mb": worker.ask("gpu_memory")["megabytes"],
    }


def measure_all(
    names: list[str], batch: int, steps: int, done: Callable[[str, dict[str, Any]], None]
) -> None:
    """Measure one row after the other, each in a process that is alone on the GPU; report each to `done`."""
    for name in names:
        variant = VARIANTS[name]
        overrides = (*BASE, *variant.overrides, f"train.batch_size={batch}")
        try:
            with Worker(variant.kind, overrides, variant.environment) as worker:
                row = measure(worker, batch, steps)
        except (SystemExit, BrokenPipeError, ValueError) as error:  # it ended, or its answer is not JSON
            row = {"failed": str(error)}
        done(name, row)


def main() -> None:
    parser = documented_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu-training.json"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", default="all", help=f"comma-separated, of {', '.join(VARIANTS)}; or all")
    arguments = parser.parse_args()
    names = chosen(parser, arguments.rows, list(VARIANTS))
    if reason := no_gpu_reason():
        sys.exit(f"A GPU is required: {reason}.")
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if not name.startswith("torch")]
    results: dict[str, Any] = {"format": 2, "machine": describe_machine().model_dump(), "steps": {}}

    def done(name: str, row: dict[str, Any]) -> None:
        results["steps"][name] = row
        with atomic_write(arguments.output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(row), flush=True)

    measure_all(names, arguments.batch, arguments.steps, done)
    failed = [name for name, row in results["steps"].items() if "failed" in row]
    print(f"{arguments.output}: bring this file back" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
