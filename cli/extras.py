"""Which extra of the package installs which module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# `onnx-gpu` and `gpu` install modules of `onnx` and `train` too; they are never recommended for a missing module.
EXTRAS = {
    "train": (
        "tensorflow",
        "keras",
        "keras_cv",
        "tensorflow_datasets",
        "tensorboard",
        "importlib_resources",
    ),
    "onnx": ("onnxruntime",),
    "export": ("onnx", "tf2onnx"),
    "report": ("matplotlib", "sklearn"),
    "serve": ("orjson", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "search": ("faiss",),
    "ray": ("ray",),
    "parquet": ("pyarrow",),
    "tensorrt": ("tensorrt", "cuda"),
}


def extra_of(module: str | None, arguments: Sequence[str] = ()) -> str | None:
    """Return the extra that installs a missing module for a command line; None if none does."""
    package = (module or "").partition(".")[0]
    if package == "onnx" and any("tensorrt" in word for word in arguments):
        return "tensorrt"  # building an engine: `export` would overwrite ONNX Runtime for GPUs with that for CPUs
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)


def onnxruntime_remark(versions: Mapping[str, str | None], *, has_gpu: bool) -> str | None:
    """Return why ONNX Runtime cannot use the machine's NVIDIA GPU, and the remedy; None if nothing is wrong."""
    for_cpu, for_gpu = versions.get("onnxruntime"), versions.get("onnxruntime-gpu")
    if for_cpu and for_gpu:
        extra = "onnx-gpu" if has_gpu else "onnx"
        return (
            "onnxruntime and onnxruntime-gpu have overwritten each other's files: pip uninstall "
            f"onnxruntime onnxruntime-gpu, then pip install 'swav-tf[{extra}]'"
        )
    if has_gpu and not for_gpu:
        first = "pip uninstall onnxruntime, then " if for_cpu else ""
        return f"ONNX Runtime cannot use this machine's GPU: {first}pip install 'swav-tf[onnx-gpu]'"
    return None
