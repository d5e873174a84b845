"""The view of an image for k-NN, probes and features: short side resized, centre cropped."""

from __future__ import annotations

import numpy as np

from swav_tf.data.augment import Image, resize_box
from swav_tf.recipe.pretraining import EvaluationView


def evaluation_view(image: Image, view: EvaluationView) -> Image:
    """The centre of an image, uint8 (view.crop, view.crop, 3), its short side first resized to view.resize.

    Raises:
        ValueError: if the crop is larger than the resized short side.
    """
    if view.crop > view.resize:
        raise ValueError(f"the crop ({view.crop} px) must fit the resized short side ({view.resize} px)")
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = height * view.resize // short, width * view.resize // short
    resized = resize_box(image, (0, 0, height, width), new_height, new_width)
    top, left = round((new_height - view.crop) / 2), round((new_width - view.crop) / 2)
    return np.ascontiguousarray(resized[top : top + view.crop, left : left + view.crop])
