"""Who can run a cell of a benchmark, what each takes and needs, and why it cannot be had here. No TensorFlow."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from evaluate.backends.onnx_backend import missing_provider
from evaluate.benchmark.machine import no_gpu_because
from evaluate.benchmark.schema import Kind
from swav_tf.plumbing.errors import UsageError


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
