"""From uint8 images to what a graph takes, as its metadata tell."""

from __future__ import annotations

import numpy as np

from evaluate.runners.onnx_metadata import Preprocessing


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
