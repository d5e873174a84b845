"""Features of a source's images by the backbone in inference mode, as k-NN and cached probe want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swav_tf.data.loader import ended_after, evaluation_batches
from swav_tf.data.sources import ImageSource
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.recipe.pretraining import Data


def extract_features(
    model: ReplicatedModel,
    source: ImageSource,
    indices: Sequence[int] | npt.NDArray[np.int64],
    settings: Data,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Features (n, F), float32, of the images at `indices`, in that order.

    The running averages of batch normalisation are used, and stay as they are.
    """
    # In place: a list of parts and its concatenation would need twice the memory.
    features = np.empty((len(indices), model.backbone.output_shape[-1]), np.float32)
    done = 0
    with ended_after():
        batches = iter(
            evaluation_batches(
                source, indices, settings.evaluation, batch_size=batch_size, threads=settings.threads
            )
        )
        for images in batches:
            features[done : done + len(images)] = model.features(images).numpy()
            done += len(images)
    return features
