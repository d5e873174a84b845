"""The k-NN accuracy of the features during training: the loss does not track their quality."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np

from swav_tf.data.image_source import ImageSource
from swav_tf.errors import DataError
from swav_tf.knn import knn_accuracy
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Recipe
from swav_tf.training.callbacks.position import Position
from swav_tf.training.features import extract_features


class WatchNeighbours(keras.callbacks.Callback):
    """Every `knn_every_epochs` epochs, on the chief: the other workers wait meanwhile.

    The validation images ask if there are any, else a fifth of the training images; at most
    `knn_images` are taken of each, the same ones every time.
    """

    model: SwAV

    def __init__(
        self,
        recipe: Recipe,
        position: Position,
        source: ImageSource,
        validation: ImageSource | None,
        write: Callable[[str, dict[str, float]], None],
    ) -> None:
        super().__init__()
        self.recipe, self.position, self.write = recipe, position, write
        self.source, self.asking = source, validation or source
        limit, draw = recipe.monitor.knn_images, np.random.default_rng(recipe.train.seed)
        chosen = draw.permutation(len(source))[:limit]
        if validation is None:
            cut = len(chosen) // 5
            self.queries, self.known = np.sort(chosen[:cut]), np.sort(chosen[cut:])
        else:
            self.known = np.sort(chosen)
            self.queries = np.sort(draw.permutation(len(validation))[:limit])
        self.labels = np.array([source.label(int(i)) for i in self.known])
        self.query_labels = np.array([self.asking.label(int(i)) for i in self.queries])
        if min(self.labels.min(initial=0), self.query_labels.min(initial=0)) < 0:
            raise DataError(
                "monitor.knn_every_epochs needs labelled images. Received: images without labels. "
                "Set it to 0, or use data.kind=class_folders."
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Measures at the end of its epochs and of the run."""
        position, monitor = self.position, self.recipe.monitor
        due = (position.epoch + 1) % monitor.knn_every_epochs == 0 or position.step == position.total_steps
        if not (position.at_epoch_end and due):
            return
        known = extract_features(self.model, self.source, self.known, self.recipe.data)
        queries = extract_features(self.model, self.asking, self.queries, self.recipe.data)
        if not (np.isfinite(known).all() and np.isfinite(queries).all()):
            self.position.validation["knn_top1"] = None
            self.write("knn", {"knn_top1": math.nan})  # a figure that is none; the run's own end is another's
            return
        accuracy = knn_accuracy(
            known,
            self.labels,
            queries,
            self.query_labels,
            k=min(monitor.knn_neighbours, len(known)),
            temperature=monitor.knn_temperature,
        )
        self.position.validation["knn_top1"] = accuracy  # a checkpoint keeps it
        self.write("knn", {"knn_top1": accuracy})
