"""Measure the cells of a benchmark, each in a fresh process, so that its memory, crashes and hangs are its own.

`measure_in_process` writes the cell as JSON to the process's stdin and reads the measured cell from its stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from evaluate.benchmark import machine
from evaluate.benchmark.runners import RUNNERS, TimedModel, open_for_timing, random_images
from evaluate.benchmark.schema import NOT_YET, Benchmark, Cell, Model, Settings, Timing, marks_of, timing_of
from swav_tf.plumbing.errors import DataError, SwavError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.nvidia import GpuState, gpu_state
from swav_tf.plumbing.system import peak_memory
from swav_tf.recipe.section import Section

TIMEOUT_SECONDS: Final = 1800.0  # a cell whose process takes longer has failed
MAX_SECONDS: Final = 60.0  # of a cell, unless its least time is longer; then it may have too few runs
MIN_WARMUP_RUNS: Final = 3
MIN_COSINE: Final = {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}  # features below it are not the model's


def run_benchmark(
    planned: Sequence[Cell],
    models: Sequence[Model],
    settings: Settings,
    *,
    after_each: Callable[[Benchmark], None] = lambda benchmark: None,
) -> Benchmark:
    """Measure the cells of `plan_cells(models)`; `after_each` is called with the state after each process.

    Ctrl-C or SIGTERM ends the benchmark early; the result then contains what was measured, with `complete` False.
    """
    cells = [*planned]
    state = Benchmark(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=False,
        settings=settings,
        machine=machine.describe_machine(),
        models=tuple(models),
        cells=tuple(cells),
    )
    waiting = [place for place, cell in enumerate(cells) if cell.reason == NOT_YET]
    try:
        with _sigterm_as_ctrl_c():
            for number, place in enumerate(waiting, start=1):
                log.info("%d/%d  %s %s", number, len(waiting), cells[place].model, cells[place].label)
                cells[place] = measure_in_process(cells[place], settings)
                state = state.model_copy(update={"cells": tuple(cells)})
                after_each(state)
    except KeyboardInterrupt:
        return state
    return state.model_copy(update={"complete": True})


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, or the process that measures would go on alone."""
    if threading.current_thread() is not threading.main_thread():  # others cannot handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Request(Section):
    """What the process gets."""

    cell: Cell
    settings: Settings


def measure_in_process(cell: Cell, settings: Settings, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Cell:
    """Have a fresh process measure a cell. If it dies or hangs, the cell has failed."""
    # It must import what this process would: other packages are named `evaluate`, too.
    places = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "evaluate.benchmark.run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places, "TF_CPP_MIN_LOG_LEVEL": "3"},
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process, which kills the other below
    )
    try:
        request = Request(cell=cell, settings=settings)
        stdout, stderr = process.communicate(request.model_dump_json(), timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return _failed(cell, f"no result after {timeout_seconds:g} s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        return Cell.model_validate_json(stdout)
    except ValueError:
        return _failed(cell, death(process.returncode, stderr))


def death(code: int, stderr: str) -> str:
    """Return why a process without a result ended."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if code == -signal.SIGKILL:
        return "its process was killed, as happens when memory runs out"
    if code < 0:
        return f"its process ended with {signal.Signals(-code).name}: {last[:300]}"
    return f"its process ended with exit code {code}: {last[:300]}"


def _failed(cell: Cell, reason: str) -> Cell:
    return cell.model_copy(update={"status": "failed", "reason": reason.strip()})


# === In the process ===


def main() -> None:
    """Read a request from stdin and write the measured cell to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on stdout
    request = Request.model_validate_json(sys.stdin.read())
    try:
        cell = measure_cell(request.cell, request.settings)
    except SwavError as error:
        cell = _failed(request.cell, str(error))
    except Exception as error:  # any error of a runtime is a failure of this cell, not of the benchmark
        cell = _failed(request.cell, f"{type(error).__name__}: {error}")
    answers.write(cell.model_dump_json())
    answers.close()


def measure_cell(cell: Cell, settings: Settings) -> Cell:
    """Open the model, warm up, time it, and compare its features with the reference."""
    state_now = gpu_state if RUNNERS[cell.runner].gpu else GpuState
    path, gpu_before = Path(str(cell.file)), state_now().memory_mib
    model = open_for_timing(cell.runner, path, cell.batch, settings)
    images = random_images(model.input_view, cell.batch)
    cpu_before = machine.cpu_seconds()
    host = time_runs(lambda: model.host(images), settings, cell.batch)
    device = None if model.device is None else time_runs(model.device, settings, cell.batch)
    gpu, peak = state_now(), peak_memory()
    measured = cell.model_copy(
        update={
            "status": "ok",
            "reason": None,
            "host": host,
            "device": device,
            "cuda_graph": model.cuda_graph,
            "gpu_clock_mhz": gpu.clock_mhz,
            "gpu_throttling": gpu.throttling,
            "others_cpu_share": machine.others_cpu_share(cpu_before),
            "host_peak_mib": None if peak is None else round(peak / 2**20, 1),
            "gpu_mib": None
            if gpu_before is None or gpu.memory_mib is None
            else max(0.0, gpu.memory_mib - gpu_before),
            "feature_cosine": feature_cosine(model, path, cell.batch),
        }
    )
    cosine = measured.feature_cosine
    if cosine is not None and cosine < MIN_COSINE[cell.precision]:
        return _failed(
            measured, f"its features are not the model's: their cosine with Keras' is {cosine:.4f}"
        )
    return measured.model_copy(update={"marks": (*model.notes, *marks_of(measured))})


def time_runs(
    run: Callable[[], object],
    settings: Settings,
    batch: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time single runs after a warm-up of three runs and a third of `settings.seconds`.

    `run` returns when its result is available; at least one run is timed.
    """
    limit = max(MAX_SECONDS, settings.seconds)

    def timed(seconds: float, runs: int, max_seconds: float) -> list[float]:
        samples: list[float] = []
        began = now = clock()
        while now - began < max_seconds and (now - began < seconds or len(samples) < runs):
            run()
            before, now = now, clock()
            samples.append(1000 * (now - before))
        return samples

    warmup = timed(settings.seconds / 3, MIN_WARMUP_RUNS, limit / 3)
    return timing_of(timed(settings.seconds, settings.runs, limit), warmup_runs=len(warmup), batch=batch)


def feature_cosine(model: TimedModel, path: Path, batch: int) -> float | None:
    """Return the smallest cosine with Keras' features for the first images of reference.npz.

    None if there is no reference of these weights; -1 if a feature is not finite.
    """
    reference = path.parent / "reference.npz"
    if path.is_dir() or not reference.is_file():
        return None
    try:
        with np.load(reference, allow_pickle=False) as file:
            if json.loads(str(file["facts"]))["weights_sha256"] != model.weights_sha256:
                return None
            images, expected = file["images"][:batch], np.asarray(file["features"][:batch], np.float64)
    except Exception as error:  # of zipfile, NumPy and JSON
        raise DataError(
            f"{reference} must be a reference from `swav-tf export`. Received: {error}. Export again or remove it."
        ) from error
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
