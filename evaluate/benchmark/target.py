"""What a cell of a benchmark runs: one model, opened by one runner, ready for one size of batch. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from swav_tf.recipe import EvaluationView

Outputs = Mapping[str, np.ndarray]


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


def random_images(view: EvaluationView, batch: int) -> np.ndarray:
    """uint8 (batch, crop, crop, 3), the same at every call."""
    return np.random.default_rng(0).integers(0, 256, (batch, view.crop, view.crop, 3), dtype=np.uint8)
