"""The runners of a benchmark: what each needs, why it may be unavailable, and how it opens a model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.onnx_backend import missing_provider
from evaluate.backends.tensorrt_module import find_tensorrt, the_gpu
from evaluate.benchmark.schema import Kind, Settings
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.nvidia import no_gpu_reason
from swav_tf.recipe.data import EvaluationView


@dataclass(frozen=True)
class RunnerFacts:
    """What a runner needs."""

    takes: Kind  # the kind of model it runs
    gpu: bool  # whether it computes on an NVIDIA GPU
    meaning: str  # a description for the report
    provider: str | None = None  # of ONNX Runtime, or OpenVINO


RUNNERS: Final[Mapping[str, RunnerFacts]] = {
    "ort-cpu": RunnerFacts("onnx", False, "ONNX Runtime on the CPU", "cpu"),
    "openvino-cpu": RunnerFacts(
        "onnx", False, "OpenVINO on the CPU; float32 files in bfloat16 where the CPU has it", "openvino"
    ),
    "ort-cuda": RunnerFacts("onnx", True, "ONNX Runtime with CUDA kernels", "cuda"),
    "ort-tensorrt": RunnerFacts(
        "onnx", True, "ONNX Runtime with a TensorRT engine that it builds", "tensorrt"
    ),
    "tensorrt": RunnerFacts("engine", True, "a TensorRT engine run by TensorRT"),
    "keras": RunnerFacts(
        "run", False, "a run folder in Keras, compiled as a graph, on the device that TensorFlow chooses"
    ),
}


def why_unavailable(runner: str) -> str | None:
    """Return why a runner cannot be used on this machine, None if it can; UsageError for an unknown name."""
    if runner not in RUNNERS:
        raise UsageError(f"--runner must be one of {', '.join(RUNNERS)}. Received: {runner}.")
    facts = RUNNERS[runner]
    if facts.gpu and (reason := no_gpu_reason()):
        return reason
    if facts.provider is not None:
        return missing_provider(facts.provider)
    if runner == "tensorrt":
        try:
            find_tensorrt()
            the_gpu()
        except UsageError as error:
            return str(error)
    if runner == "keras" and importlib.util.find_spec("tensorflow") is None:
        return "tensorflow is not installed: pip install 'swav-tf[train]'"
    return None


# === Opening a model, in the process that times it ===


@dataclass(frozen=True)
class TimedModel:
    """A model that is ready for one batch size.

    `host` takes uint8 images (batch, side, side, 3) in host memory and returns arrays in host memory; `device` computes
    with input and outputs in GPU memory and waits for the end, None if not available.
    """

    input_view: EvaluationView  # of its images
    weights_sha256: str
    host: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    device: Callable[[], None] | None = None
    cuda_graph: bool = False  # whether runs are recorded as a CUDA graph
    notes: tuple[str, ...] = ()  # requests that could not be met


def random_images(view: EvaluationView, batch: int) -> np.ndarray:
    """Return uint8 images (batch, crop, crop, 3), equal at each call."""
    return np.random.default_rng(0).integers(0, 256, (batch, view.crop, view.crop, 3), dtype=np.uint8)


def open_for_timing(runner: str, path: Path, batch: int, settings: Settings) -> TimedModel:
    """Open a model on a runner for one batch size."""
    threads, cuda_graph = settings.threads, settings.cuda_graph
    provider = RUNNERS[runner].provider
    if provider in ("cuda", "tensorrt"):
        return _open_on_gpu(path, provider, batch, cuda_graph)
    if runner == "tensorrt":
        return _open_engine(path, batch, cuda_graph)
    if runner == "keras":
        from evaluate.backends.keras_backend import KerasBackend

        if threads:
            os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)  # TensorFlow reads it when it is imported
        backend: Backend = KerasBackend(path)
    else:
        from evaluate.backends.onnx_backend import OnnxBackend

        backend = OnnxBackend(path, provider=str(provider), threads=threads, only_timing=True)
    return TimedModel(backend.input_view, backend.facts.weights_sha256, backend.run)


def _open_on_gpu(path: Path, provider: str, batch: int, cuda_graph: bool) -> TimedModel:
    """Open ONNX Runtime with bound tensors; if no CUDA graph is possible, without one and with a note."""
    from evaluate.backends.onnx_backend import OnnxBackend

    def opened(*, graph: bool, notes: tuple[str, ...]) -> TimedModel:
        backend = OnnxBackend(path, provider=provider, cuda_graph=graph, only_timing=True)
        view, prepare = backend.input_view, backend.prepare
        bound = backend.bound(random_images(view, batch))
        for _ in range(3):  # the first runs record the graph, and fail if they cannot
            bound.run()
        weights = backend.facts.weights_sha256
        return TimedModel(view, weights, lambda i: bound.run_from_host(prepare(i)), bound.run, graph, notes)

    notes: tuple[str, ...] = ()
    if cuda_graph:
        try:
            return opened(graph=True, notes=())
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            notes = (f"no CUDA graph: {str(error).splitlines()[0][:200]}",)
    return opened(graph=False, notes=notes)  # outside `except`, which would keep the failed session in memory


def _open_engine(path: Path, batch: int, cuda_graph: bool) -> TimedModel:
    from evaluate.backends.tensorrt_backend import TensorrtBackend

    backend = TensorrtBackend(path, cuda_graph=cuda_graph)
    compute: list[Callable[[], None]] = []

    def on_device() -> None:
        if not compute:  # built at the first call: until then `run` owns the buffers
            compute.append(backend.computation(random_images(backend.input_view, batch)))
        compute[0]()

    weights = backend.facts.weights_sha256
    return TimedModel(backend.input_view, weights, backend.run, on_device, backend.cuda_graph)
