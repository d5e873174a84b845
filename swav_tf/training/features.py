"""Features of a source's images by the backbone in inference mode, as the k-NN during training wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swav_tf.data.pipeline import evaluation_batches
from swav_tf.data.sources import ImageSource
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Data


def extract_features(
    model: SwAV,
    source: ImageSource,
    indices: Sequence[int] | npt.NDArray[np.int64],
    settings: Data,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Features (n, F), float32, of the images at `indices`, in that order.

    The running averages of batch normalisation are used, and stay as they are.
    """
    batches = evaluation_batches(
        source, indices, settings.evaluation, batch_size=batch_size, threads=settings.threads
    )
    return np.concatenate([model.features(images).numpy() for images in batches])
