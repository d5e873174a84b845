"""The accuracy of a classifier on labeled images, during training and afterwards, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.data.image_source import ImageSource
from swav_tf.data.labels import labels_among, numbered, printable_names
from swav_tf.data.loader import ended_after, evaluation_batches
from swav_tf.model.replicas import per_replica_variable, sum_over_replicas
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.files import atomic_write, write_csv
from swav_tf.plumbing.log import log
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.data import Data
from swav_tf.runs.model_facts import BY_IMPORT, ModelFacts
from swav_tf.training.callbacks import MetricsLog
from swav_tf.training.classifier import Classifier
from swav_tf.training.cluster import Topology, topology
from swav_tf.training.failures import explained_failures
from swav_tf.training.position import Logs, Position

TOP = 5
_PADDING = -1  # label of an image that fills up a batch
MOST_LABELS = 40  # of a drawn confusion matrix; with more, names and numbers would be too small to read


@dataclass(frozen=True)
class Counts:
    """The predictions of a classifier on labeled images of C classes."""

    confusion: npt.NDArray[np.int64]  # (C, C), images by true class (row) and predicted class (column)
    top5: npt.NDArray[np.int64]  # (C,), images by true class that is among the five most probable ones
    loss: float  # mean cross-entropy

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Return the number of images per class, (C,)."""
        return self.confusion.sum(axis=1)

    @property
    def right(self) -> npt.NDArray[np.int64]:
        """Return the number of correctly classified images per class, (C,)."""
        return np.diagonal(self.confusion)

    def as_dict(self) -> dict[str, float]:
        """Return the figures over all images; accuracies are shares, 0 to 1."""
        images = int(self.images.sum())
        return {
            "top1": int(self.right.sum()) / images,
            "top5": int(self.top5.sum()) / images,
            "loss": self.loss,
        }


def tally(logits: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
    """Return confusion (C, C), top-5 hits (C,), sum of losses () and number of non-finite rows (), float32.

    Logits are float32 (n, C), labels int64 (n,). Of equal logits the first class wins. Rows with label -1 do not count.
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
    """Return the counts of summed tallies."""
    confusion, top5, loss, broken = sums
    if broken:
        raise SwavError(
            f"Logits must be finite. Received: NaN or infinity for {int(broken)} validation images. "
            "The weights are unusable: train again with lower learning rates."
        )
    images = float(confusion.sum(dtype=np.float64))
    return Counts(confusion.astype(np.int64), top5.astype(np.int64), float(loss) / images)


class Validation:
    """Measure a classifier on the evaluation views of labeled images, distributed over all replicas.

    All workers must have the same images and labels, (n,), and call `measure` together. `settings` give view and
    threads.
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
        self.rounds = -(-len(source) // (replica_batch_size * team.replicas))
        share = self.rounds * replica_batch_size * team.replicas // team.workers
        # Padded so that all replicas have the same number of batches: a collective waits for all of them.
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
        """Return the counts over all images; SwavError if logits were not finite."""
        strategy = self.model.distribute_strategy
        iterator = iter(strategy.distribute_datasets_from_function(lambda _: self._batches()))
        for _ in range(self.rounds):
            self._add(*next(iterator))
        sums = [strategy.experimental_local_results(value)[0].numpy() for value in self._read()]
        return counts_of(sums)

    def _batches(self) -> tf.data.Dataset:
        view, threads = self.settings.evaluation, self.settings.threads
        views = evaluation_batches(self.source, self.indices, view, self.batch_size, threads)
        labels = tf.data.Dataset.from_tensor_slices(self.labels).batch(self.batch_size)
        return tf.data.Dataset.zip((views, labels)).with_options(views.options())

    def _add_batch(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        for total, value in zip(self.sums, tally(self.model(images, training=False), labels), strict=True):
            total.assign_add(value)

    def _sum_up(self) -> list[tf.Tensor]:
        """Return the sums over all replicas, and reset them."""
        sums = sum_over_replicas([tf.identity(total.read_value()) for total in self.sums])
        with tf.control_dependencies(sums):
            for total in self.sums:
                total.assign(tf.zeros_like(total))
        return sums


class Validate(keras.callbacks.Callback):
    """Validate every `every_epochs` epochs and at the end, on all workers.

    `position.validation` gets `last` and `best`, each with epoch (from 1), step, top1, top5 and loss. The best epoch is
    the first with the highest top-1; its checkpoint is kept. `images` identifies the images and their labels.
    """

    def __init__(
        self,
        validation: Validation,
        position: Position,
        metrics: MetricsLog,
        *,
        every_epochs: int,
        images: str,
    ) -> None:
        super().__init__()
        self.validation, self.position, self.metrics = validation, position, metrics
        self.every_epochs = every_epochs
        self.counts: Counts | None = None  # of the last validation
        self.images = images

    def measure_start(self) -> None:
        """Measure the classifier that fine-tuning starts from: `initial`."""
        initial = self.validation.measure().as_dict()
        self.position.validation |= {"initial": initial, "images": self.images}
        log.info("The probe, where fine-tuning starts: top-1 %.2f %%", 100 * initial["top1"])

    def measure(self) -> Counts:
        """Measure now; the best epoch on other images is forgotten: accuracies of different images do not compare."""
        position, found = self.position, self.position.validation
        if found and found.setdefault("images", self.images) != self.images:  # earlier versions recorded none
            log.warning(
                "The validation images have changed: the best epoch is chosen among those from here on."
            )
            for key in ("initial", "best"):
                found.pop(key, None)
        with position.doing("validation"):
            self.counts = self.validation.measure()
        figures = self.counts.as_dict()
        position.measured["validation top-1"] = figures["top1"]
        last: dict[str, Any] = {"epoch": position.epoch + 1, "step": position.step, **figures}
        best = found.get("best")
        if best is None or last["top1"] > best["top1"]:
            best = last
        found |= {"last": last, "best": best, "images": self.images}
        return self.counts

    def of_last_step(self) -> Counts:
        """Return the counts after training; measure if a callback ended it, or an earlier part of the run did all."""
        if self.counts is None or self.position.validation["last"]["step"] != self.position.step:
            return self.measure()
        return self.counts

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Measure when an epoch that is due ends."""
        position = self.position
        due = (position.epoch + 1) % self.every_epochs == 0 or position.at_end
        if position.at_epoch_end and due:
            figures = self.measure().as_dict()
            best_top1 = position.validation["best"]["top1"]
            self.metrics.write("validation", {**figures, "best_top1": best_top1})


def measure(
    classifier: tuple[Classifier, ProbeRecipe | FinetuneRecipe, ModelFacts],
    source: ImageSource,
    settings: Data,
    *,
    batch_size: int = 128,
) -> tuple[Counts, tuple[str, ...]]:
    """Measure a classifier, as `load_classifier` returns it; return the counts and the names of the classes.

    The unnamed classes of an import get the names of the images' classes, in order.

    Raises:
        DataError: the images have no labels or other classes, or one cannot be read.
        SwavError: logits were not finite.
    """
    model, recipe, facts = classifier
    names = facts.class_names
    unnamed = facts.how == BY_IMPORT and names == numbered(len(names))
    if unnamed and len(source.class_names) == len(names) and not all(map(str.isdecimal, source.class_names)):
        log.warning(
            "The imported classifier has no class names: its outputs are assumed to be the images' classes in the "
            "order of their names. Import it with --classes FILE to match them by name."
        )
        names = printable_names(source.class_names)
    labels = labels_among(names, source)
    team = topology(model.distribute_strategy)
    with explained_failures(recipe.train, team), ended_after():
        validation = Validation(model, source, labels, settings, replica_batch_size=batch_size, team=team)
        return validation.measure(), names


def write_results(folder: Path, counts: Counts, class_names: tuple[str, ...], title: str) -> None:
    """Write per_class.csv, confusion.csv and confusion.png."""
    per_class: list[list[Any]] = []
    for name, images, top1, top5 in zip(class_names, counts.images, counts.right, counts.top5, strict=True):
        per_class.append([name, images, *([top1 / images, top5 / images] if images else ["", ""])])
    write_csv(folder / "per_class.csv", ["class", "images", "top1", "top5"], per_class)
    confusion = ([name, *row] for name, row in zip(class_names, counts.confusion, strict=True))
    write_csv(folder / "confusion.csv", ["true class", *class_names], confusion)
    _draw_confusion(folder / "confusion.png", counts.confusion, class_names, title=title)


def _draw_confusion(
    path: Path, confusion: npt.NDArray[np.int64], class_names: tuple[str, ...], *, title: str
) -> None:
    """Write a PNG of a confusion matrix (true class, predicted class), colored by the share of the row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(class_names)
    labeled = count <= MOST_LABELS
    side = min(max(4.5, 0.42 * count), 14) if labeled else 10
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), dpi=110, layout="constrained")
    interpolation = "nearest" if labeled else "antialiased"
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation=interpolation)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if labeled:
        rotation = 0 if max(map(len, class_names)) <= 3 else 90
        axes.set_xticks(range(count), class_names, rotation=rotation, fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the true class's images", shrink=0.8)
    with atomic_write(path) as partial:
        figure.savefig(partial)
    plt.close(figure)
