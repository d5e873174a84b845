"""From the name of a model to what runs it. TensorFlow is loaded for a run folder only."""

from __future__ import annotations

from pathlib import Path

from evaluate.backends.backend import Runner
from evaluate.backends.engine_file import SUFFIXES
from swav_tf.plumbing.errors import UsageError


def is_run_folder(model: Path | str) -> bool:
    """Whether this is the folder of a pretraining run: what only Keras can run."""
    return (Path(model) / "config.yaml").is_file()


def open_runner(model: Path | str, *, provider: str | None = None, threads: int = 0) -> Runner:
    """The model in a run folder, with the weights of its newest checkpoint, or in a file by `swav-tf export`.

    Args:
        model: the folder or file.
        provider: ONNX files only: `cpu`, `cuda` or `tensorrt`, that one and no other; None is `cpu`.
        threads: ONNX files on a CPU only: that compute one batch; 0 for one per core.

    Raises:
        UsageError: it is missing, is no run folder, has no checkpoint, or cannot be run on this machine.
        CheckpointError: its checkpoint is damaged.
        DataError: the file is damaged.
    """
    path = Path(model)
    if not path.exists():
        raise UsageError(
            f"--model must be the folder of a pretraining run, an ONNX file or an engine. Received: {path}, "
            "which is not there."
        )
    if path.is_file() and path.suffix == ".onnx":
        from evaluate.backends.onnx_backend import OnnxRunner

        return OnnxRunner(path, provider=provider or "cpu", threads=threads)
    if provider is not None or threads:
        raise UsageError(
            f"A provider and its threads belong to an ONNX file. Received: {path}, which is none."
        )
    if is_run_folder(path):
        from evaluate.backends.keras_backend import KerasRunner

        return KerasRunner(path)
    if path.is_file() and path.suffix in SUFFIXES:
        from evaluate.backends.tensorrt_backend import TensorrtRunner

        return TensorrtRunner(path)
    what = "a folder without config.yaml" if path.is_dir() else "a file"
    raise UsageError(
        f"--model must be the folder of a pretraining run, with config.yaml and checkpoints/, an ONNX file, or "
        f"an engine (.plan). Received: {path}, {what}."
    )
