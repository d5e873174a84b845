"""The interface that every inference backend provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from swav_tf.recipe.pretraining import Data, EvaluationView


@dataclass(frozen=True)
class ModelIdentity:
    """The facts that identify a model."""

    path: str  # of its folder or file
    runner: str  # `keras`, `onnxruntime` with provider and precision, or TensorRT with version and precision
    weights_sha256: str  # of the weights' file; features of equal weights can be compared
    step: int  # optimizer steps that it was trained for
    recipe: str  # its name
    file_sha256: str | None = None  # of an exported file; None for a run folder

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return asdict(self)


class Backend(ABC):
    """A model that is ready to run."""

    input_view: EvaluationView  # the evaluation view that its images must be in
    outputs: tuple[str, ...]  # their names, always with `features`
    feature_dim: int  # F
    facts: ModelIdentity
    data: Data  # settings of its training images, the defaults for other images

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features (n, F), float32, of a batch of images; see `run`."""
        return self.run(images)["features"]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs of uint8 RGB images (n, crop, crop, 3) in the input view, n >= 1, not normalized.

        Returns:
            float32 arrays by name: `features` (n, F) and, if the model has them, `projections` (n, D) of length 1,
            `scores` (n, K), their cosines with the prototypes, or a classifier's `logits` (n, classes).
        """
        self.check(images)
        return self._run(images)

    def check(self, images: np.ndarray) -> None:
        """Raise ValueError if the images have another type or shape than `run` takes."""
        side = self.input_view.crop
        if images.dtype != np.uint8 or len(images) < 1 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"Images must be uint8 (n, {side}, {side}, 3), n >= 1. Received: {images.dtype} {images.shape}."
            )

    @abstractmethod
    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]: ...
