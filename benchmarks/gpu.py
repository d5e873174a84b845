"""Everything that needs a GPU, on one exported folder: engines, parity, speed; one JSON to bring back.

    python -m benchmarks.gpu EXPORTED [--output gpu-results.json] [--batch 1,8,32,128] [--rounds 3]

Needs no TensorFlow. EXPORTED is a folder by

    swav-tf export RUN --precision fp32,fp16,int8 --target tensorrt --output EXPORTED

on a machine that has it. A step that fails is recorded, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evaluate.benchmark.machine import describe_machine, no_gpu_reason
from swav_tf.plumbing.files import atomic_write

RUNNERS = "ort-cuda,ort-tensorrt,tensorrt"
TAIL = 4000  # characters of a step's last words that are kept


def step(name: str, arguments: list[str]) -> dict[str, Any]:
    """Runs `swav-tf` with arguments, and tells what came of it."""
    print(f"=== {name}: swav-tf {' '.join(arguments)}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    words = run.stdout + run.stderr
    print(words, flush=True)
    return {
        "step": name,
        "command": ["swav-tf", *arguments],
        "exit_code": run.returncode,
        "seconds": round(time.perf_counter() - began, 1),
        "last_words": words[-TAIL:],
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exported", type=Path)
    parser.add_argument("--output", type=Path, default=Path("gpu-results.json"))
    parser.add_argument("--batch", default="1,8,32,128")
    parser.add_argument("--rounds", default="3")
    arguments = parser.parse_args()
    if reason := no_gpu_reason():
        sys.exit(f"This measures a GPU: {reason}.")
    onnx = sorted(arguments.exported.glob("*.onnx"))
    if not onnx:
        sys.exit(
            f"EXPORTED must be a folder by `swav-tf export`. Received: {arguments.exported}, without .onnx files."
        )
    batches = sorted(map(int, arguments.batch.split(",")))
    profile = f"{batches[0]},{batches[len(batches) // 2]},{batches[-1]}"
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        measured = Path(folder) / "benchmark.json"
        steps = []
        for path in onnx:
            if not path.name.endswith("-cpu.onnx"):
                build = [
                    "export",
                    str(path),
                    "--to",
                    "tensorrt",
                    "--batch",
                    profile,
                    "--output",
                    str(arguments.exported),
                ]
                steps.append(step(f"engine of {path.name}", build))
        steps.append(step("parity", ["verify", str(arguments.exported), "--batch", str(batches[-1])]))
        html = arguments.output.with_suffix(".html")
        speed = ["benchmark", str(arguments.exported), "--runner", RUNNERS, "--batch", arguments.batch]
        speed += ["--rounds", arguments.rounds, "--json", str(measured), "--html", str(html), "--quiet"]
        steps.append(step("speed", speed))
        results = {
            "format": 1,
            "machine": describe_machine().model_dump(),
            "steps": steps,
            "parity": read(arguments.exported / "parity.json"),
            "benchmark": read(measured),
        }
    with atomic_write(arguments.output) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    failed = [one["step"] for one in steps if one["exit_code"]]
    print(f"{arguments.output}: bring this file back" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
