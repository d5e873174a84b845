"""Inference backends: Keras, ONNX Runtime and TensorRT behind one interface."""

from __future__ import annotations

from pathlib import Path

from evaluate.backends.backend import Backend
from evaluate.backends.engine_file import SUFFIXES
from evaluate.backends.foreign import Contract
from swav_tf.plumbing.errors import UsageError


def is_run_folder(model: Path | str) -> bool:
    """Return whether this is the folder of a pretraining run, which only Keras can run."""
    return (Path(model) / "config.yaml").is_file()


def open_model(
    model: Path | str,
    *,
    provider: str | None = None,
    threads: int = 0,
    contract: Contract | None = None,
) -> Backend:
    """Open a run folder (its newest checkpoint), a file from `swav-tf export` or a third-party ONNX file.

    Only run folders load TensorFlow. For ONNX files only: `provider` is `cpu` (the default), `openvino`, `cuda` or
    `tensorrt`, without fallback to another; `threads` compute one batch on a CPU, 0 for one per core; `contract`
    specifies the preprocessing of a third-party file.

    Raises:
        UsageError: it is missing, not a model, has no checkpoint, or cannot run on this machine.
        CheckpointError: its checkpoint is damaged.
        DataError: the file is damaged.
    """
    path = Path(model)
    if path.is_file() and path.suffix == ".onnx":
        from evaluate.backends.onnx_backend import OnnxBackend

        # Between batches the cores belong to the threads that decode images.
        return OnnxBackend(path, provider=provider or "cpu", threads=threads, spin=False, contract=contract)
    if path.exists() and (provider is not None or threads or contract is not None):
        raise UsageError(
            f"--provider, threads, --view, --mean, --std and --output-name apply to ONNX files only. Received: {path}."
        )
    if is_run_folder(path):
        from evaluate.backends.keras_backend import KerasBackend

        return KerasBackend(path)
    if path.is_file() and path.suffix in SUFFIXES:
        from evaluate.backends.tensorrt_backend import TensorrtBackend

        return TensorrtBackend(path)
    what = "a file" if path.exists() else "which does not exist"
    what = "a folder without config.yaml" if path.is_dir() else what
    raise UsageError(
        "The model must be the folder of a pretraining run (with config.yaml and checkpoints/), an ONNX file or an "
        f"engine (.plan). Received: {path}, {what}."
    )
