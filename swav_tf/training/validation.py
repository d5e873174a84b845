"""Accuracy on labelled images, during training and on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.data.loader import evaluation_batches
from swav_tf.data.sources import ImageSource
from swav_tf.model.replicas import per_replica_variable, sum_over_replicas
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.pretraining import Data
from swav_tf.training.classifier import Classifier
from swav_tf.training.cluster import Topology
from swav_tf.training.position import Position

NAMED_CLASSES = 40  # with more of them names and numbers would be specks


def draw_confusion(
    path: Path, confusion: npt.NDArray[np.int64], class_names: Sequence[str], *, title: str
) -> None:
    """Writes a PNG: rows are true classes, columns predicted ones, colour the share of the row.

    Args:
        path: of the picture.
        confusion: images by (true class, predicted class), (C, C).
        class_names: of the C classes.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(class_names)
    named = count <= NAMED_CLASSES
    side = min(max(4.5, 0.42 * count), 14) if named else 10
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), dpi=110, layout="constrained")
    image = axes.imshow(
        shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if named else "antialiased"
    )
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if named:
        rotation = 0 if max(map(len, class_names)) <= 3 else 90
        axes.set_xticks(range(count), class_names, rotation=rotation, fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=7
            )
    figure.colorbar(image, ax=axes, label="share of the true class's images", shrink=0.8)
    with atomic_write(path) as partial:
        figure.savefig(partial)
    plt.close(figure)


TOP = 5
_PADDING = -1  # label of an image that only fills up a batch


@dataclass(frozen=True)
class Counts:
    """What a classifier said of labelled images.

    Attributes:
        confusion: (C, C), images by true class (row) and most probable class (column).
        top5: (C,), images by true class whose class is among the five most probable ones.
        loss: mean cross-entropy.
    """

    confusion: npt.NDArray[np.int64]
    top5: npt.NDArray[np.int64]
    loss: float

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Images by true class, (C,)."""
        return self.confusion.sum(axis=1)

    @property
    def right(self) -> npt.NDArray[np.int64]:
        """Images by true class whose class is the most probable one, (C,)."""
        return np.diagonal(self.confusion)

    def as_dict(self) -> dict[str, float]:
        """The figures over all images; accuracies are shares, 0 to 1."""
        images = int(self.images.sum())
        return {
            "top1": int(self.right.sum()) / images,
            "top5": int(self.top5.sum()) / images,
            "loss": self.loss,
        }


def tally(logits: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
    """Confusion (C, C), top-5 hits (C,), sum of losses () and non-finite rows (), float32.

    Of equal logits the first class wins. Rows of label -1 do not count.

    Args:
        logits: (n, C), float32.
        labels: (n,), int64.
    """
    class_count = logits.shape[-1]
    counts = tf.cast(labels >= 0, tf.float32)
    truth = tf.maximum(labels, 0)
    own = tf.gather(logits, truth, batch_dims=1)[:, tf.newaxis]
    earlier = tf.range(class_count, dtype=tf.int64) < truth[:, tf.newaxis]
    rank = tf.reduce_sum(tf.cast((logits > own) | ((logits == own) & earlier), tf.int32), axis=1)
    pairs = truth * class_count + tf.argmax(logits, axis=1)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
    broken = tf.cast(~tf.reduce_all(tf.math.is_finite(logits), axis=1), tf.float32)
    confusion = tf.math.unsorted_segment_sum(counts, pairs, class_count * class_count)
    return [
        tf.reshape(confusion, [class_count, class_count]),
        tf.math.unsorted_segment_sum(counts * tf.cast(rank < TOP, tf.float32), truth, class_count),
        tf.reduce_sum(tf.where(counts > 0, losses, 0.0)),
        tf.reduce_sum(counts * broken),
    ]


def counts_of(sums: list[npt.NDArray[np.float32]]) -> Counts:
    """Counts from sums of tallies.

    Raises:
        SwavError: logits were not finite.
    """
    confusion, top5, loss, broken = sums
    if broken:
        raise SwavError(
            f"Logits must be finite. Received: NaN or infinity for {int(broken)} validation images. "
            "The weights are of no use: lower the learning rates."
        )
    images = float(confusion.sum(dtype=np.float64))
    return Counts(confusion.astype(np.int64), top5.astype(np.int64), float(loss) / images)


class Validation:
    """Measures a classifier on the evaluation views of labelled images, shared out over all replicas.

    Every worker must call `measure` at the same time: the counts are summed over replicas, once.

    Args:
        model: under its strategy.
        source: the images, the same on every worker.
        labels: their classes, (n,).
        settings: view and threads.
        replica_batch_size: images that a replica sees at once.
        team: who computes.
    """

    def __init__(
        self,
        model: Classifier,
        source: ImageSource,
        labels: npt.NDArray[np.int64],
        settings: Data,
        *,
        replica_batch_size: int,
        team: Topology,
    ) -> None:
        self.model, self.settings, self.source = model, settings, source
        self.batch_size = replica_batch_size
        rounds = -(-len(source) // (replica_batch_size * team.replicas))
        share = rounds * replica_batch_size * team.replicas // team.workers
        self.rounds = rounds
        # Filled up, so that every replica of every worker has as many batches: a collective waits for all.
        indices = np.full(share * team.workers, _PADDING, np.int64)
        indices[: len(source)] = np.arange(len(source))
        self.indices = indices[team.worker * share :][:share]
        self.labels = np.where(self.indices >= 0, labels[self.indices], _PADDING)
        class_count = model.classifier.units
        with model.distribute_strategy.scope():
            # float32 is exact up to 16,777,216 images in one cell.
            self.sums = [
                per_replica_variable(tf.zeros(shape), f"validation_sum_{i}")
                for i, shape in enumerate([(class_count, class_count), (class_count,), (), ()])
            ]
        self._add, self._read = model.on_replicas(self._add_batch), model.on_replicas(self._sum_up)

    def measure(self) -> Counts:
        """All images, once.

        Raises:
            SwavError: logits were not finite.
        """
        strategy = self.model.distribute_strategy
        iterator = iter(strategy.distribute_datasets_from_function(lambda _: self._batches()))
        for _ in range(self.rounds):
            self._add(*next(iterator))
        sums = [strategy.experimental_local_results(value)[0].numpy() for value in self._read()]
        return counts_of(sums)

    def _batches(self) -> tf.data.Dataset:
        views = evaluation_batches(
            self.source,
            self.indices,
            self.settings.evaluation,
            batch_size=self.batch_size,
            threads=self.settings.threads,
        )
        labels = tf.data.Dataset.from_tensor_slices(self.labels).batch(self.batch_size)
        return tf.data.Dataset.zip((views, labels)).with_options(views.options())

    def _add_batch(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        for total, value in zip(self.sums, tally(self.model(images, training=False), labels), strict=True):
            total.assign_add(value)

    def _sum_up(self) -> list[tf.Tensor]:
        """The sums over all replicas; they start at zero again."""
        sums = sum_over_replicas([tf.identity(total.read_value()) for total in self.sums])
        with tf.control_dependencies(sums):
            for total in self.sums:
                total.assign(tf.zeros_like(total))
        return sums


class Validate(keras.callbacks.Callback):
    """Validates at the end of epochs, on all workers, and keeps the last and the best in the position.

    Args:
        validation: measures.
        position: gets `validation`: `last` and `best`, each with epoch (from 1), top1, top5, loss. The best
            epoch is the first with the highest top-1.
        every_epochs: between two validations; the last epoch is always validated.
        write: for a line of metrics, or None.
    """

    def __init__(
        self,
        validation: Validation,
        position: Position,
        *,
        every_epochs: int,
        write: Callable[[str, dict[str, Any]], None] | None,
    ) -> None:
        super().__init__()
        self.validation, self.position = validation, position
        self.every_epochs, self.write = every_epochs, write
        self.counts: Counts | None = None  # of the last epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Measures if the epoch is over and due."""
        position = self.position
        due = (position.epoch + 1) % self.every_epochs == 0 or position.step == position.total_steps
        if not (position.at_epoch_end and due):
            return
        self.counts = self.validation.measure()
        figures = self.counts.as_dict()
        last: dict[str, Any] = {"epoch": position.epoch + 1, **figures}
        best = position.validation.get("best")
        if best is None or last["top1"] > best["top1"]:
            best = last
        position.validation = {"last": last, "best": best}
        if self.write is not None:
            self.write("validation", {**figures, "best_top1": best["top1"]})
