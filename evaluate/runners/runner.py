"""Who computes features: one small protocol, whatever the model was saved as."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluate.runners.engine_file import SUFFIXES
from swav_tf.errors import UsageError
from swav_tf.recipe import Data, EvaluationView


@dataclass(frozen=True)
class ModelFacts:
    """Which model it is.

    Attributes:
        path: its folder or file.
        runner: who runs it: `keras`, `onnxruntime` with provider and precision, or TensorRT with version and precision.
        weights_sha256: of the weights' file; features of equal weights may be compared.
        step: optimiser steps that it was trained for.
        recipe: name of its recipe.
        file_sha256: of an exported file, since calibrations differ where weights do not; None for a run folder.
    """

    path: str
    runner: str
    weights_sha256: str
    step: int
    recipe: str
    file_sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        return asdict(self)


class Runner(Protocol):
    """A model that is ready to run.

    Attributes:
        name: who runs it: `keras`, `onnxruntime` or `tensorrt`.
        view: the preprocessing that its images need, the evaluation view of its training.
        feature_dim: F.
        facts: which model it is.
        data: settings of its training images, what commands assume where nothing else is said.
    """

    name: str
    view: EvaluationView
    feature_dim: int
    facts: ModelFacts
    data: Data

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What the model says of a batch of images.

        Args:
            images: uint8 RGB (n, view.crop, view.crop, 3), n >= 1; not yet normalised.

        Returns:
            `features` (n, F) and, where the model has them, `projections` (n, D), of length 1, and
            `scores` (n, K), the cosines with the prototypes, or a classifier's `logits` (n, classes); all float32.

        Raises:
            ValueError: the images have another type or shape.
        """
        ...


def is_run_folder(model: Path | str) -> bool:
    """Whether this is the folder of a pretraining run: what only Keras can run."""
    return (Path(model) / "config.yaml").is_file()


def open_runner(model: Path | str, *, provider: str | None = None, threads: int = 0) -> Runner:
    """The model in a run folder, with the weights of its newest checkpoint, or in a file by `swav-tf export`.

    Args:
        model: the folder or file.
        provider: ONNX files only: `cpu`, `cuda` or `tensorrt`, that one and no other; None is `cpu`.
        threads: ONNX files on a CPU only: that compute one batch; 0 for one a core.

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
        from evaluate.runners.onnx_runner import OnnxRunner

        return OnnxRunner(path, provider=provider or "cpu", threads=threads)
    if provider is not None or threads:
        raise UsageError(
            f"A provider and its threads belong to an ONNX file. Received: {path}, which is none."
        )
    if is_run_folder(path):
        from evaluate.runners.keras_runner import KerasRunner

        return KerasRunner(path)
    if path.is_file() and path.suffix in SUFFIXES:
        from evaluate.runners.tensorrt_runner import TensorrtRunner

        return TensorrtRunner(path)
    what = "a folder without config.yaml" if path.is_dir() else "a file"
    raise UsageError(
        f"--model must be the folder of a pretraining run, with config.yaml and checkpoints/, an ONNX file, or "
        f"an engine (.plan). Received: {path}, {what}."
    )


def check_images(images: np.ndarray, view: EvaluationView) -> None:
    """Refuses what `Runner.run` does not take.

    Raises:
        ValueError: the images are not uint8 (n, view.crop, view.crop, 3) with n >= 1.
    """
    if images.dtype != np.uint8 or len(images) < 1 or images.shape[1:] != (view.crop, view.crop, 3):
        raise ValueError(
            f"Images must be uint8 (n, {view.crop}, {view.crop}, 3), n >= 1. "
            f"Received: {images.dtype} {images.shape}."
        )
