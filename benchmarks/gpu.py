"""Everything that needs a GPU: training steps, or the engines, parity and speed of an exported folder; one JSON each.

    python -m benchmarks.gpu training [--output gpu-training.json] [--batch 256] [--rows fp16,torch_fp16]
    python -m benchmarks.gpu inference EXPORTED [--output gpu-results.json] [--batch 1,8,32,128] [--rounds 3]

Training needs TensorFlow with CUDA. Each row is a process of its own (benchmarks/step_worker.py) that steps on the same
random crops on the device and has the GPU to itself; PyTorch's rows are left out where it is not installed. A row takes
half a minute, nearly all of it TensorFlow's choice of kernels; those of XLA take minutes.

Inference needs no TensorFlow. EXPORTED is a folder by `swav-tf export RUN --precision fp32,fp16,int8 --target tensorrt
--output EXPORTED`, on a machine that has it.

A row or command that fails is recorded, and the others continue; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import chosen
from benchmarks.step import BASE, Worker
from evaluate.benchmark.machine import describe_machine, no_gpu_reason
from swav_tf.plumbing.files import atomic_write

TAIL = 4000  # characters of a command's output that are kept


def swav_tf(*arguments: str, seconds: float | None = None) -> dict[str, Any]:
    """Run `swav-tf`; return its exit code and the end of its output, with its JSON for `--json`."""
    print(f"=== swav-tf {' '.join(arguments)}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"command": arguments, "failed": f"no result after {seconds:g} s"}
    output = run.stdout + run.stderr
    print(output[-TAIL:], flush=True)
    found: dict[str, Any] = {
        "command": arguments, "seconds": round(time.perf_counter() - began, 1), "output": output[-TAIL:],
    }  # fmt: skip
    if run.returncode:
        return found | {"failed": f"exit code {run.returncode}"}
    if arguments[-1] == "--json":
        try:
            found["json"] = json.loads(run.stdout)
        except ValueError as error:
            found["failed"] = f"stdout is not JSON: {error}"
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# === Training ===

WARM_STEPS = 4  # traces, compiles, chooses kernels


@dataclass(frozen=True)
class Variant:
    """A kind of step, settings of the recipe, variables of its process, and its share of the batch."""

    kind: str
    overrides: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    share: float = 1.0


FP16, BF16 = "train.precision=mixed_float16", "train.precision=mixed_bfloat16"
SEPARATE = (
    ("TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT", "0"),
)  # TensorFlow's default, which training overrides
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


def start(variant: Variant, images: int) -> Worker:
    overrides = (*BASE, *variant.overrides, f"train.batch_size={images}")
    return Worker(variant.kind, overrides, dict(variant.environment))


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
        images = round(batch * VARIANTS[name].share)
        try:
            with start(VARIANTS[name], images) as worker:
                row = measure(worker, images, steps)
        except (SystemExit, BrokenPipeError, ValueError) as error:  # it ended, or its answer is not JSON
            row = {"failed": str(error)}
        done(name, row)


def training(arguments: argparse.Namespace, names: list[str]) -> list[str]:
    """Return the failed rows."""
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if not name.startswith("torch")]
    results: dict[str, Any] = {"format": 2, "machine": describe_machine().model_dump(), "steps": {}}

    def done(name: str, row: dict[str, Any]) -> None:
        results["steps"][name] = row
        write(arguments.output, results)
        print(name, json.dumps(row), flush=True)

    measure_all(names, arguments.batch, arguments.steps, done)
    if not arguments.no_profile:
        recipe = ("-c", "one_gpu", "-o", "train.accumulation_steps=1")
        results["profile"] = swav_tf("profile", *recipe, "--json", seconds=300)
        write(arguments.output, results)
    rows = results["steps"] | {"profile": results.get("profile", {})}
    return [name for name, row in rows.items() if "failed" in row]


# === Inference ===


def inference(arguments: argparse.Namespace) -> list[str]:
    """Return the failed commands."""
    folder, onnx = arguments.exported, sorted(arguments.exported.glob("*.onnx"))
    if not onnx:
        sys.exit(f"EXPORTED must be a folder by `swav-tf export`. Received: {folder}, without .onnx files.")
    batches = sorted(map(int, arguments.batch.split(",")))
    profile = f"{batches[0]},{batches[len(batches) // 2]},{batches[-1]}"
    steps = [
        swav_tf("export", str(path), "--to", "tensorrt", "--batch", profile, "--output", str(folder))
        for path in onnx
        if not path.name.endswith("-cpu.onnx")
    ]
    steps.append(swav_tf("verify", str(folder), "--batch", str(batches[-1])))
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as place:
        measured = Path(place) / "benchmark.json"
        speed = [
            "--runner",
            "ort-cuda,ort-tensorrt,tensorrt",
            "--batch",
            arguments.batch,
            "--rounds",
            arguments.rounds,
        ]
        files = ["--json", str(measured), "--html", str(arguments.output.with_suffix(".html"))]
        steps.append(swav_tf("benchmark", str(folder), *speed, *files, "--quiet"))
        found = {
            name: json.loads(path.read_text()) if path.is_file() else None
            for name, path in (("parity", folder / "parity.json"), ("benchmark", measured))
        }
    results = {"format": 2, "machine": describe_machine().model_dump(), "steps": steps, **found}
    write(arguments.output, results)
    return [" ".join(step["command"][:2]) for step in steps if "failed" in step]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    of_training, of_inference = commands.add_parser("training"), commands.add_parser("inference")
    of_training.add_argument("--output", type=Path, default=Path("gpu-training.json"))
    of_training.add_argument("--batch", type=int, default=256)
    of_training.add_argument("--steps", type=int, default=12)
    of_training.add_argument(
        "--rows", default="all", help=f"comma-separated, of {', '.join(VARIANTS)}; or all"
    )
    of_training.add_argument("--no-profile", action="store_true", help="leave out `swav-tf profile`")
    of_inference.add_argument("exported", type=Path)
    of_inference.add_argument("--output", type=Path, default=Path("gpu-results.json"))
    of_inference.add_argument("--batch", default="1,8,32,128")
    of_inference.add_argument("--rounds", default="3")
    arguments = parser.parse_args()
    names = chosen(of_training, arguments.rows, list(VARIANTS)) if arguments.what == "training" else []
    if reason := no_gpu_reason():
        sys.exit(f"A GPU is required: {reason}.")
    failed = training(arguments, names) if arguments.what == "training" else inference(arguments)
    print(f"{arguments.output}: bring this file back" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
