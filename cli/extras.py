"""Which extra of the package brings which module."""

from __future__ import annotations

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
    ),
    "onnx": ("onnxruntime",),
    "export": ("onnx", "tf2onnx"),
    "tensorrt": ("tensorrt", "cuda"),
}


def extra_of(module: str | None) -> str | None:
    """The extra that brings a module, by its import name."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)
