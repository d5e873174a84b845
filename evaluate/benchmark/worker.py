"""Measure one cell in a fresh process, so that its memory, its crashes and its hangs are its own.

`measure_in_process` sends a request as JSON to the process's stdin and reads the answer as JSON from its stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluate.benchmark import machine
from evaluate.benchmark.runners import RUNNERS, TimedModel, open_for_timing, random_images
from evaluate.benchmark.schema import Observed, Settings
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.system import peak_memory
from swav_tf.recipe.section import Section

MIN_WARMUP_RUNS = 3


class Request(Section):
    """A cell to measure."""

    runner: str
    path: str
    batch: int
    settings: Settings


class Samples(Section):
    """The times of single runs."""

    ms: tuple[float, ...]
    warmup_runs: int


class Answer(Observed):
    """The measurements of one process; `error` is None on success."""

    error: str | None = None
    host: Samples | None = None
    device: Samples | None = None
    notes: tuple[str, ...] = ()


# === The parent's side ===


def measure_in_process(request: Request, *, timeout_seconds: float) -> Answer:
    """Have a fresh process measure a cell. If it fails, dies or hangs, the answer contains the error."""
    # It must import what this process would: other packages are named `evaluate`, too.
    places = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "evaluate.benchmark.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places, "TF_CPP_MIN_LOG_LEVEL": "3"},
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process, which kills the other below
    )
    try:
        stdout, stderr = process.communicate(request.model_dump_json(), timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return Answer(error=f"no result after {timeout_seconds:g} s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        return Answer.model_validate_json(stdout)
    except ValueError:
        return Answer(error=_death(process.returncode, stderr))


def _death(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if code == -signal.SIGKILL:
        return "its process was killed, as happens when memory runs out"
    if code < 0:
        return f"its process ended with {signal.Signals(-code).name}: {last[:300]}"
    return f"its process ended with exit code {code}: {last[:300]}"


# === The process's side ===


def main() -> None:
    """Read a request from stdin and write its answer to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on stdout
    request = Request.model_validate_json(sys.stdin.read())
    try:
        answer = measure_cell(request)
    except SwavError as error:
        answer = Answer(error=str(error))
    except Exception as error:  # any error of a runtime is a failure of this cell, not of the benchmark
        answer = Answer(error=f"{type(error).__name__}: {error}")
    answers.write(answer.model_dump_json())
    answers.close()


def measure_cell(request: Request) -> Answer:
    """Open the model, warm up, time it, and compare its features with the reference."""
    on_gpu, settings, path = RUNNERS[request.runner].gpu, request.settings, Path(request.path)
    load, host_before = machine.load(), machine.memory_mib()
    gpu_state = machine.gpu_state if on_gpu else machine.GpuState
    before = gpu_state().memory_mib
    model = open_for_timing(request.runner, path, request.batch, settings)
    images = random_images(model.input_view, request.batch)
    cpu_before = machine.cpu_seconds()
    host = time_runs(lambda: model.host(images), settings)
    device = None if model.device is None else time_runs(model.device, settings)
    gpu = gpu_state()
    return Answer(
        host=host,
        device=device,
        notes=model.notes,
        cuda_graph=model.cuda_graph,
        gpu_clock_mhz=gpu.clock_mhz,
        gpu_throttling=gpu.throttling,
        others_cpu_share=machine.others_cpu_share(cpu_before),
        host_peak_mib=None if (peak := peak_memory()) is None else round(peak / 2**20, 1),
        host_before_mib=host_before,
        gpu_mib=None if before is None or gpu.memory_mib is None else max(0.0, gpu.memory_mib - before),
        load=load,
        feature_cosine=feature_cosine(model, path, request.batch),
    )


def time_runs(
    run: Callable[[], object], settings: Settings, clock: Callable[[], float] = time.perf_counter
) -> Samples:
    """Time single runs after a warm-up of three runs and a third of `settings.seconds`.

    `run` returns when its result is available; at least one run is timed.
    """

    def timed(seconds: float, runs: int, max_seconds: float) -> list[float]:
        samples: list[float] = []
        began = now = clock()
        while now - began < max_seconds and (now - began < seconds or len(samples) < runs):
            run()
            before, now = now, clock()
            samples.append(round(1000 * (now - before), 5))
        return samples

    warmup = timed(settings.seconds / 3, MIN_WARMUP_RUNS, settings.max_seconds / 3)
    samples = timed(settings.seconds, settings.runs, settings.max_seconds)
    return Samples(ms=tuple(samples), warmup_runs=len(warmup))


def feature_cosine(model: TimedModel, path: Path, batch: int) -> float | None:
    """Return the minimum cosine with Keras' features for the first images of reference.npz.

    None if there is no reference of these weights; -1 if a feature is not finite.
    """
    reference = path.parent / "reference.npz"
    if path.is_dir() or not reference.is_file():
        return None
    with np.load(reference, allow_pickle=False) as file:
        if json.loads(str(file["facts"]))["weights_sha256"] != model.weights_sha256:
            return None
        images, expected = file["images"][:batch], np.asarray(file["features"][:batch], np.float64)
    if images.shape[1:3] != (model.input_view.crop, model.input_view.crop):
        return None
    count = len(images)
    padded = images[np.arange(batch) % count]  # bound tensors have a fixed batch size
    found = np.asarray(model.host(padded)["features"], np.float64)[:count]
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.sum(found * expected, axis=1) / lengths
    return float(cosines.min()) if np.isfinite(cosines).all() else -1.0


if __name__ == "__main__":
    main()
