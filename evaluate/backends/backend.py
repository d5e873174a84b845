"""What every inference backend provides."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from evaluate.backends.onnx_metadata import Preprocessing
from swav_tf.recipe.pretraining import Data, EvaluationView


@dataclass(frozen=True)
class ModelIdentity:
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
    facts: ModelIdentity
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


def prepared(images: np.ndarray, how: Preprocessing) -> np.ndarray:
    """The images themselves, or normalised and channels first, float32 (n, 3, size, size).

    Args:
        images: uint8 RGB (n, size, size, 3).
        how: the graph takes them.
    """
    if how.inside:
        return images
    scaled = images.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
