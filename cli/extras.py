"""Which extra of the package brings which module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# `onnx-gpu` and `gpu` bring modules of `onnx` and `train` once more: a missing module does not ask for them.
EXTRAS = {
    "train": (
        "tensorflow",
        "keras",
        "keras_cv",
        "tensorflow_datasets",
        "tensorboard",
        "sklearn",
        "matplotlib",
        "pyarrow",
        "importlib_resources",
    ),
    "onnx": ("onnxruntime",),
    "export": ("onnx", "tf2onnx"),
    "report": ("jinja2",),
    "tensorrt": ("tensorrt", "cuda"),
}


def extra_of(module: str | None, arguments: Sequence[str] = ()) -> str | None:
    """The extra that brings a module, by its import name.

    Args:
        module: that is missing.
        arguments: of the command line that misses it.
    """
    package = (module or "").partition(".")[0]
    if package == "onnx" and any(word.endswith(".onnx") for word in arguments):
        return "tensorrt"  # an engine of a file: `export` would put ONNX Runtime for CPUs over that for GPUs
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)


def onnxruntime_remark(versions: Mapping[str, str | None], *, has_gpu: bool) -> str | None:
    """What keeps ONNX Runtime from a GPU, and how to mend it; None if nothing does.

    Args:
        versions: of the installed packages, by name.
        has_gpu: whether there is an NVIDIA GPU.
    """
    for_cpu, for_gpu = versions.get("onnxruntime"), versions.get("onnxruntime-gpu")
    if for_cpu and for_gpu:
        extra = "onnx-gpu" if has_gpu else "onnx"
        return (
            "onnxruntime and onnxruntime-gpu have overwritten each other's files: pip uninstall "
            f"onnxruntime onnxruntime-gpu, then pip install 'swav-tf[{extra}]'"
        )
    if has_gpu and not for_gpu:
        first = "pip uninstall onnxruntime, then " if for_cpu else ""
        return f"ONNX Runtime cannot use the GPU that is here: {first}pip install 'swav-tf[onnx-gpu]'"
    return None
