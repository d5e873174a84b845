"""One cell of a benchmark, in a process of its own: its memory is its own, and so is what it breaks.

A request comes as JSON on stdin, the answer goes as JSON into a file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from evaluate.backends.onnx_backend import open_session
from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark import machine
from evaluate.benchmark.peaks import measure_bandwidth, measure_peak
from evaluate.benchmark.runner_facts import RUNNERS
from evaluate.benchmark.target import Target, open_target, random_images
from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.pretraining import Section

MIN_WARMUP_RUNS = 3


class Request(Section):
    """What to measure.

    Attributes:
        task: a cell, or a limit of the machine.
        runner, path, precision, batch: the cell; of a limit only `precision`, and `runner` is a provider.
        threads, cuda_graph: see Settings.
        seconds, runs, max_seconds: how long.
    """

    task: Literal["cell", "peak"]
    runner: str
    path: str = ""
    precision: Precision = "fp32"
    batch: int = 1
    threads: int = 0
    cuda_graph: bool = True
    seconds: float = 3.0
    runs: int = 100
    max_seconds: float = 60.0


class Samples(Section):
    """Times of single runs."""

    ms: tuple[float, ...]
    warmup_runs: int


class Answer(Section):
    """What was found; `error` is None if all went well."""

    error: str | None = None
    host: Samples | None = None
    device: Samples | None = None
    cuda_graph: bool = False
    notes: tuple[str, ...] = ()
    host_peak_mib: float | None = None
    host_before_mib: float | None = None
    gpu_mib: float | None = None
    load: float | None = None
    others_cpu_share: float | None = None
    gpu_clock_mhz: float | None = None
    gpu_throttling: str | None = None
    feature_cosine: float | None = None
    gflops: float | None = Field(None, description="of a limit")
    gbytes: float | None = Field(None, description="of a limit")


def main() -> None:
    """Reads the request, writes the answer into the file that the argument names."""
    request = Request.model_validate_json(sys.stdin.read())
    try:
        answer = answer_of(request)
    except SwavError as error:
        answer = Answer(error=str(error))
    except Exception as error:  # whatever a runtime throws is this cell's failure, not the benchmark's
        answer = Answer(error=f"{type(error).__name__}: {error}")
    Path(sys.argv[1]).write_text(answer.model_dump_json(), encoding="utf-8")


def answer_of(request: Request) -> Answer:
    """Measures what is asked for.

    Raises:
        Exception: whatever the runner throws.
    """
    return measure_cell(request) if request.task == "cell" else _peak(request)


def measure_cell(request: Request) -> Answer:
    """Opens the model, warms up, times, and looks whether it computed the right thing."""
    facts = RUNNERS[request.runner]
    load = machine.load()
    if request.runner == "trtexec":
        from evaluate.benchmark.trtexec import time_by_trtexec

        samples = time_by_trtexec(Path(request.path), batch=request.batch, seconds=request.seconds)
        return Answer(device=Samples(ms=tuple(samples), warmup_runs=0), load=load)
    gpu_before = machine.gpu_memory_mib() if facts.gpu else None
    before = machine.memory_mib()
    target = open_target(
        request.runner,
        Path(request.path),
        batch=request.batch,
        threads=request.threads,
        cuda_graph=request.cuda_graph,
    )
    images = random_images(target.view, request.batch)
    others = machine.OtherProcesses()
    host = _time(lambda: target.host(images), request)
    device = None if target.device is None else _time(target.device, request)
    gpu_after = machine.gpu_memory_mib() if facts.gpu else None
    return Answer(
        host=host,
        device=device,
        cuda_graph=target.cuda_graph,
        notes=target.notes,
        gpu_clock_mhz=machine.gpu_clock_mhz() if facts.gpu else None,
        gpu_throttling=machine.gpu_throttling() if facts.gpu else None,
        others_cpu_share=others.share(),
        host_peak_mib=machine.peak_memory_mib(),
        host_before_mib=before,
        gpu_mib=None if gpu_after is None or gpu_before is None else max(0.0, gpu_after - gpu_before),
        load=load,
        feature_cosine=feature_cosine(target, Path(request.path), request.batch),
    )


def time_runs(
    run: Callable[[], object],
    *,
    seconds: float,
    runs: int,
    max_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], int]:
    """Times of single runs, and the number of runs before them that warmed up.

    Warming up takes a third of `seconds` and three runs, or a third of `max_seconds`.

    Args:
        run: returns when its result is there.
        seconds: it is timed at least this long,
        runs: and at least so many times,
        max_seconds: but ends after this, with one run at least.
        clock: seconds.

    Returns:
        Milliseconds of each run; runs of the warm-up.
    """
    began, warmup = clock(), 0
    while True:
        run()
        warmup += 1
        passed = clock() - began
        if (passed >= seconds / 3 and warmup >= MIN_WARMUP_RUNS) or passed >= max_seconds / 3:
            break
    samples: list[float] = []
    began = before = clock()
    while True:
        run()
        now = clock()
        samples.append(1000 * (now - before))
        before = now
        passed = now - began
        if (passed >= seconds and len(samples) >= runs) or passed >= max_seconds:
            return samples, warmup


def _time(run: Callable[[], object], request: Request) -> Samples:
    samples, warmup = time_runs(
        run, seconds=request.seconds, runs=request.runs, max_seconds=request.max_seconds
    )
    return Samples(ms=tuple(round(sample, 5) for sample in samples), warmup_runs=warmup)


def feature_cosine(target: Target, path: Path, batch: int) -> float | None:
    """Least cosine of features with Keras', for the first images of the reference beside the file.

    None where there is no reference of these weights.
    """
    reference = path.parent / "reference.npz"
    if path.is_dir() or not reference.is_file():
        return None
    with np.load(reference, allow_pickle=False) as file:
        if json.loads(str(file["facts"]))["weights_sha256"] != target.weights_sha256:
            return None
        images, wanted = file["images"][:batch], file["features"][:batch]
    if images.shape[1:3] != (target.view.crop, target.view.crop):
        return None
    count = len(images)
    padded = images[np.arange(batch) % count]  # a bound batch has one size
    found = np.asarray(target.host(padded)["features"], np.float64)[:count]
    wanted = np.asarray(wanted, np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.sum(found * wanted, axis=1) / lengths
    return float(cosines.min()) if np.isfinite(cosines).all() else -1.0


def _peak(request: Request) -> Answer:
    """A limit of the machine."""

    def session_of(graph: bytes) -> object:
        return open_session(graph, provider=request.runner, threads=request.threads)

    device: Literal["cpu", "cuda"] = "cpu" if request.runner == "cpu" else "cuda"
    return Answer(
        gflops=measure_peak(request.precision, session_of, device=device) / 1e9,
        gbytes=measure_bandwidth(session_of, device=device) / 1e9,
    )


if __name__ == "__main__":
    main()
