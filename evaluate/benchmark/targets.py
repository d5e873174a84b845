"""What a cell of a benchmark runs: one model, opened by one runner, ready for one size of batch. No TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from evaluate.benchmark.nvidia import no_gpu_because
from evaluate.benchmark.schema import Kind
from evaluate.runners.onnx_session import missing_provider
from swav_tf.errors import UsageError
from swav_tf.recipe import EvaluationView

if TYPE_CHECKING:
    from evaluate.runners.onnx_runner import OnnxRunner

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RunnerFacts:
    """What a runner is and needs.

    Attributes:
        takes: kind of model.
        gpu: whether it computes on an NVIDIA GPU.
        modules: Python modules that must be installed; of `a|b` either.
        get_it: how to get them.
        provider: ONNX Runtime's, for those that use it.
        peer: an alternative to our export: it is compared in fp32 only.
        meaning: in words.
    """

    takes: Kind
    gpu: bool
    modules: tuple[str, ...]
    get_it: str
    meaning: str
    provider: str | None = None
    peer: bool = False


_ORT: Final = "pip install 'swav-tf[onnx]'"
_ORT_GPU: Final = "pip install 'swav-tf[onnx-gpu]'"
_TORCH: Final = "pip install torch onnx"
_WITH_TORCH: Final = ("torch", "onnx")

RUNNERS: Final[Mapping[str, RunnerFacts]] = {
    "ort-cpu": RunnerFacts("onnx", False, ("onnxruntime",), _ORT, "ONNX Runtime on the CPU", "cpu"),
    "ort-cuda": RunnerFacts(
        "onnx", True, ("onnxruntime",), _ORT_GPU, "ONNX Runtime with CUDA kernels", "cuda"
    ),
    "ort-tensorrt": RunnerFacts(
        "onnx",
        True,
        ("onnxruntime",),
        _ORT_GPU,
        "ONNX Runtime with a TensorRT engine that it builds",
        "tensorrt",
    ),
    "tensorrt": RunnerFacts(
        "engine",
        True,
        ("tensorrt|tensorrt_rtx", "cuda.bindings"),
        "pip install 'swav-tf[tensorrt]'",
        "a TensorRT engine, by TensorRT itself",
    ),
    "keras": RunnerFacts(
        "run",
        False,
        ("tensorflow",),
        "pip install 'swav-tf[train]'",
        "the run folder by Keras, compiled as a graph, on TensorFlow's own choice of device",
    ),
    "torch-cpu": RunnerFacts(
        "onnx", False, _WITH_TORCH, _TORCH, "the same network by PyTorch, eager, on the CPU", peer=True
    ),
    "torch-compile-cpu": RunnerFacts(
        "onnx", False, _WITH_TORCH, _TORCH, "the same network by torch.compile on the CPU", peer=True
    ),
    "torch-cuda": RunnerFacts(
        "onnx", True, _WITH_TORCH, _TORCH, "the same network by PyTorch, eager, on the GPU", peer=True
    ),
    "torch-compile-cuda": RunnerFacts(
        "onnx", True, _WITH_TORCH, _TORCH, "the same network by torch.compile on the GPU", peer=True
    ),
    "ort-torch-cpu": RunnerFacts(
        "onnx",
        False,
        _WITH_TORCH,
        _TORCH,
        "the same network exported by PyTorch, run by ONNX Runtime on the CPU",
        "cpu",
        peer=True,
    ),
    "trtexec": RunnerFacts(
        "onnx", True, (), "it comes with TensorRT", "NVIDIA's own trtexec on the same file", peer=True
    ),
}


def why_not(runner: str) -> str | None:
    """Why a runner cannot be had here; None if it can.

    Raises:
        UsageError: there is no runner of that name.
    """
    if runner not in RUNNERS:
        raise UsageError(f"--runner must be of {', '.join(RUNNERS)}. Received: {runner}.")
    facts = RUNNERS[runner]
    if facts.gpu and (reason := no_gpu_because()):
        return reason
    for modules in facts.modules:
        if not any(map(_is_installed, modules.split("|"))):
            return f"{modules.replace('|', ' or ')} is not installed: {facts.get_it}"
    if facts.gpu and "torch" in facts.modules and metadata.version("torch").endswith("+cpu"):
        return f"PyTorch {metadata.version('torch')} is for CPUs: {facts.get_it}, as its site says for CUDA"
    if runner == "trtexec" and shutil.which("trtexec") is None:
        return f"there is no trtexec on the PATH: {facts.get_it}"
    return None if facts.provider is None else missing_provider(facts.provider)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package is missing, or was blocked
        return False


@dataclass(frozen=True)
class Target:
    """One model, ready for one size of batch.

    Attributes:
        view: of its images.
        host: from uint8 images in the host's memory (batch, side, side, 3) to arrays there.
        device: the same with input and outputs in the GPU's memory, waiting until it is done; None where
            they are not apart.
        cuda_graph: whether its launches are recorded as a CUDA graph.
        notes: what was not done as asked.
        weights_sha256: of its weights.
    """

    view: EvaluationView
    host: Callable[[np.ndarray], Outputs]
    device: Callable[[], None] | None
    cuda_graph: bool
    notes: tuple[str, ...]
    weights_sha256: str


def open_target(runner: str, path: Path, *, batch: int, threads: int, cuda_graph: bool) -> Target:
    """Opens a model.

    Args:
        runner: a key of RUNNERS.
        path: what it takes.
        batch: images in a call.
        threads: that compute a batch on a CPU; 0: one a core.
        cuda_graph: record launches where the runner can.

    Raises:
        SwavError: it cannot be run.
    """
    facts = RUNNERS[runner]
    if runner in ("ort-cuda", "ort-tensorrt"):
        assert facts.provider is not None
        return _open_on_gpu(path, facts.provider, batch, cuda_graph)
    if runner == "tensorrt":
        return _open_engine(path, batch, cuda_graph)
    if facts.peer:
        from evaluate.benchmark.torch_peer import open_peer

        return open_peer(runner, path, batch=batch, threads=threads)
    from evaluate.runners.runner import open_runner

    if runner == "keras" and threads:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)  # it is read when TensorFlow loads
    opened = open_runner(path, threads=threads) if runner == "ort-cpu" else open_runner(path)
    return Target(opened.view, opened.run, None, False, (), opened.facts.weights_sha256)


def random_images(view: EvaluationView, batch: int) -> np.ndarray:
    """uint8 (batch, crop, crop, 3), the same at every call."""
    return np.random.default_rng(0).integers(0, 256, (batch, view.crop, view.crop, 3), dtype=np.uint8)


def _open_on_gpu(path: Path, provider: str, batch: int, cuda_graph: bool) -> Target:
    """ONNX Runtime with everything bound; without a CUDA graph, and a word about it, where there can be none."""
    from evaluate.runners.onnx_runner import OnnxRunner

    notes: tuple[str, ...] = ()
    if cuda_graph:
        try:
            return _bound(OnnxRunner(path, provider=provider, cuda_graph=True), batch, True, notes)
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            notes = (f"no CUDA graph: {str(error).splitlines()[0][:200]}",)
    return _bound(OnnxRunner(path, provider=provider), batch, False, notes)


def _bound(runner: OnnxRunner, batch: int, cuda_graph: bool, notes: tuple[str, ...]) -> Target:
    bound = runner.bound(random_images(runner.view, batch))
    for _ in range(3):  # the first runs record the graph: what it cannot do shows now
        bound.run()
    return Target(
        runner.view,
        lambda images: bound.run_from_host(runner.prepared(images)),
        bound.run,
        cuda_graph,
        notes,
        runner.facts.weights_sha256,
    )


def _open_engine(path: Path, batch: int, cuda_graph: bool) -> Target:
    from evaluate.runners.tensorrt_runner import TensorrtRunner

    runner = TensorrtRunner(path, cuda_graph=cuda_graph)
    compute: list[Callable[[], None]] = []

    def on_device() -> None:
        if not compute:  # made when it is first wanted: until then the buffers are those of `run`
            compute.append(runner.computation(random_images(runner.view, batch)))
        compute[0]()

    return Target(runner.view, runner.run, on_device, runner.cuda_graph, (), runner.facts.weights_sha256)
