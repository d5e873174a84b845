"""Training on a GPU: images/s of the step in its variants beside PyTorch's, and the profile of a recipe; one JSON.

    python -m benchmarks.gpu_training [--output gpu-training.json] [--batch 256] [--rows fp16,torch_fp16]
    python -m benchmarks.gpu_training --list

Needs TensorFlow with CUDA; PyTorch's rows are left out where it is not installed. Each row is a process of its own
(benchmarks/step_worker.py) that steps on the same random crops, already on the device. It builds its model on the GPU
as it starts, so each starts when the one before has ended: a row has the machine to itself. A row that fails is
recorded, and the others go on; the exit code is then 1. On an H200 a row took half a minute and its start, nearly all
of it TensorFlow's choice of kernels; those of XLA take minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step import BASE, Worker
from evaluate.benchmark.machine import describe_machine, no_gpu_reason
from swav_tf.plumbing.files import atomic_write
from swav_tf.training.cluster import FUSED_BATCH_NORM

WARM_STEPS = 4  # traces, compiles, chooses kernels


@dataclass(frozen=True)
class Variant:
    """One kind of step: a kind of the worker, settings of the recipe, variables of its process."""

    kind: str
    overrides: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    share: float = 1.0  # of the batch that was asked for


FP16, BF16 = "train.precision=mixed_float16", "train.precision=mixed_bfloat16"
SEPARATE = ((FUSED_BATCH_NORM, "0"),)  # TensorFlow's default, which training overrules
CLUSTERS = (("TF_XLA_FLAGS", "--tf_xla_auto_jit=2"),)

VARIANTS = {
    "fp16": Variant("swav", (FP16,)),
    "torch_fp16": Variant("torch", (FP16,)),
    "torch_fp16_compiled": Variant("torch_compiled", (FP16,)),
    "fp16_bare": Variant("bare", (FP16,)),
    "fp16_separate_bn": Variant("swav", (FP16,), SEPARATE),
    "fp16_quarter_batch": Variant("swav", (FP16,), share=0.25),
    "bf16": Variant("swav", (BF16,)),
    "fp32_half_batch": Variant("swav", share=0.5),
    # Last, since they compile for minutes.
    "fp16_xla_clusters": Variant("swav", (FP16,), CLUSTERS),
    "fp16_xla_whole": Variant("swav_jit", (FP16,)),
}


def start(variant: Variant, batch: int) -> Worker:
    before = dict(os.environ)
    os.environ.update(dict(variant.environment))
    try:
        size = f"train.batch_size={round(batch * variant.share)}"
        return Worker(variant.kind, (*BASE, *variant.overrides, size))
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(worker: Worker, variant: Variant, batch: int, steps: int) -> dict[str, Any]:
    """Images/s with the host waiting for each step, as `fit` does, and with the host running ahead."""
    begun = time.perf_counter()
    losses = [worker.ask("step")["loss"] for _ in range(WARM_STEPS)]
    warm = time.perf_counter() - begun
    waited = [worker.ask("step")["wall_s"] for _ in range(steps)]
    found: dict[str, Any] = {}
    images = round(batch * variant.share)
    low, median, high = statistics.quantiles(waited, n=4)
    found |= {
        "batch": images,
        "images_per_second": images / median,
        "quartiles": [images / high, images / low],
        "step_ms": 1000 * median,
        "warm_up_s": warm,
        "losses": losses,
    }
    if variant.kind != "bare":
        ahead = worker.ask("many", count=steps)
        found |= {
            "ahead_images_per_second": images * steps / ahead["wall_s"],
            "launch_ms": 1000 * ahead["launch_s"] / steps,
            "gpu_memory_mb": worker.ask("gpu_memory")["megabytes"],
        }
    return found


def measure_all(names: list[str], batch: int, steps: int, tell: Any) -> dict[str, Any]:
    """One row after the other, each in a process that is alone on the GPU; `tell` gets each as it is done."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            with start(VARIANTS[name], batch) as worker:
                found[name] = measure(worker, VARIANTS[name], batch, steps)
        except (SystemExit, BrokenPipeError, ValueError) as error:  # ended, or said what is no JSON
            found[name] = {"failed": str(error)}
        tell(name, found[name])
    return found


def command(name: str, arguments: list[str], seconds: int) -> dict[str, Any]:
    """Runs `swav-tf` with arguments, whose JSON is kept."""
    print(f"=== {name}: swav-tf {' '.join(arguments)}", flush=True)
    begun = time.perf_counter()
    line = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    try:
        run = subprocess.run(
            line, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds} s"}
    found = {"command": arguments, "seconds": round(time.perf_counter() - begun, 1)}
    if run.returncode:
        print(run.stderr[-2000:], flush=True)
        return found | {"failed": f"exit code {run.returncode}", "last_words": run.stderr[-2000:]}
    print(run.stdout[-3000:], flush=True)
    try:
        return found | {"told": json.loads(run.stdout)}
    except ValueError as error:
        return found | {"failed": f"its stdout must be JSON: {error}", "last_words": run.stdout[-2000:]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-training.json"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", default="all", help="names with commas, all, or none")
    parser.add_argument("--no-profile", action="store_true", help="leave `swav-tf profile` out")
    parser.add_argument("--list", action="store_true", help="tell the rows")
    arguments = parser.parse_args()
    names = {"all": list(VARIANTS), "none": []}.get(arguments.rows, arguments.rows.split(","))
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    if arguments.list:
        print("\n".join(names))
        return
    if reason := no_gpu_reason():
        sys.exit(f"This measures a GPU: {reason}.")
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if not name.startswith("torch")]

    results: dict[str, Any] = {"format": 1, "machine": describe_machine().model_dump(), "steps": {}}

    def write() -> None:
        with atomic_write(arguments.output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def tell(name: str, row: dict[str, Any]) -> None:
        results["steps"][name] = row
        write()
        if "failed" in row:
            print(f"{name:22} failed: {row['failed']}", flush=True)
            return
        ahead, launch = row.get("ahead_images_per_second", 0.0), row.get("launch_ms", 0.0)
        print(
            f"{name:22} {row['images_per_second']:7.0f} images/s, host ahead {ahead:7.0f}, "
            f"step {row['step_ms']:.1f} ms, launch {launch:.1f} ms, "
            f"{row.get('gpu_memory_mb', 0) / 1000:.1f} GB, warm-up {row['warm_up_s']:.0f} s, "
            f"losses {row['losses'][0]:.4f} {row['losses'][-1]:.4f}",
            flush=True,
        )

    measure_all(names, arguments.batch, arguments.steps, tell)
    if not arguments.no_profile:
        profile = ["profile", "-c", "one_gpu", "-o", "train.accumulation_steps=1", "--json"]
        results["profile"] = command("profile", profile, 300)
        write()
    failed = [name for name, row in results["steps"].items() if "failed" in row]
    failed += ["profile"] if "failed" in results.get("profile", {}) else []
    print(f"{arguments.output}: bring this file back" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
