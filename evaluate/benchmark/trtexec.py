"""NVIDIA's own benchmark program on an exported file, where it is installed. No TensorFlow."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate.backends.onnx_backend import OnnxBackend
from swav_tf.plumbing.errors import DataError, UsageError


def time_by_trtexec(path: Path, *, batch: int, seconds: float) -> list[float]:
    """Times of single runs, milliseconds: computing alone, input and outputs on the GPU.

    Raises:
        UsageError: there is no trtexec.
        DataError: it fails.
    """
    program = shutil.which("trtexec")
    if program is None:
        raise UsageError("trtexec must be on the PATH; it comes with TensorRT.")
    runner = OnnxBackend(path)
    shape = runner.metadata.preprocessing.input_shape(batch)
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        times = Path(folder) / "times.json"
        command = [
            program,
            f"--onnx={path}",
            f"--shapes=images:{'x'.join(map(str, shape))}",
            "--stronglyTyped",
            "--noDataTransfers",
            "--useCudaGraph",
            "--useSpinWait",
            f"--duration={max(1, round(seconds))}",
            f"--exportTimes={times}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not times.is_file():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
            raise DataError(f"trtexec ended with {done.returncode}: {lines[-1] if lines else 'no message'}")
        return compute_times(json.loads(times.read_text()))


def compute_times(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    """The times of computing in trtexec's file of times.

    Raises:
        DataError: there are none.
    """
    found = [float(entry["computeMs"]) for entry in entries if "computeMs" in entry]
    if not found:
        raise DataError("trtexec's file of times must hold `computeMs`. Received: none.")
    return found
