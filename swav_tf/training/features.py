"""Features of a source's images by the model in training, for the k-NN monitor and the cached probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swav_tf.data.image_source import ImageSource
from swav_tf.data.views import stack_views, view_batches
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.recipe.data import Data


def extract_features(
    model: ReplicatedModel,
    source: ImageSource,
    indices: Sequence[int] | npt.NDArray[np.int64],
    settings: Data,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Return the features (n, F), float32, of the images at `indices` in inference mode.

    Raises:
        DataError: an image cannot be read.
    """
    # Filled in place: a list of parts and its concatenation would need twice the memory.
    features = np.empty((len(indices), model.backbone.output_shape[-1]), np.float32)
    done = 0
    view = settings.evaluation
    for batch in view_batches(source, indices, view, batch_size, threads=settings.threads):
        features[done : done + len(batch)] = model.features(stack_views(batch)).numpy()
        done += len(batch)
    return features
