"""A linear classifier on a backbone: the model of the probe and of fine-tuning, with its train step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from swav_tf.method.loss_scale import LossScale
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.model.replicas import replica_count, sum_over_replicas, update_on_all_replicas

Batch = tuple[tf.Tensor, tf.Tensor]  # crops uint8 (b, 1, size, size, 3), classes int64 (b,)


@keras.saving.register_keras_serializable("swav_tf")
class Classifier(ReplicatedModel):
    """A backbone with a dense layer on its pooled features (docs/algorithm.md, "Linear probe").

    Args:
        backbone: maps normalized images (n, size, size, 3) to features (n, F).
        class_count: number of classes, C.
        frozen: keep the backbone unchanged: inference mode, no gradient, no moving averages.
        mean, std: per channel, of images in [0, 1].
        loss_scale: factor on the loss, for half precision.
        accumulation_steps: parts into which a batch is divided.
    """

    parts = ("backbone", "classifier")

    def __init__(
        self,
        *,
        backbone: keras.Model,
        class_count: int,
        frozen: bool,
        mean: Sequence[float],
        std: Sequence[float],
        loss_scale: LossScale,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(
            name="classifier_model",
            backbone=backbone,
            mean=mean,
            std=std,
            loss_scale=loss_scale,
            accumulation_steps=accumulation_steps,
        )
        self.frozen = frozen
        backbone.trainable = not frozen
        self.classifier = keras.layers.Dense(
            class_count,
            kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01),
            dtype="float32",
            name="classifier",
        )
        self.classifier.build((None, backbone.output_shape[-1]))
        self.finish_init()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor in the form of Keras' files."""
        return {**super().get_config(), "class_count": self.classifier.units, "frozen": self.frozen}

    # === Forward ===

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return logits (n, C), float32, of uint8 images (n, size, size, 3)."""
        features = self.backbone(self.normalize(images), training=training and not self.frozen)
        if self.frozen:
            features = tf.stop_gradient(features)
        return self.classifier(tf.cast(features, tf.float32))

    @tf.function(autograph=False, reduce_retracing=True)
    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Return probabilities (n, C), float32, of uint8 images (n, size, size, 3), in inference mode."""
        return tf.nn.softmax(self(images, training=False))

    # === One step, as one replica sees it ===

    def train_step(self, batch: Batch, requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Do one optimizer step on this replica's share of a complete batch."""
        return self._update(*self._learn(batch), requests)

    def _learn(self, batch: Batch) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return the gradients of the scaled loss, and this share's (loss, top-1 accuracy)."""
        crops, labels = batch
        with tf.GradientTape() as tape:
            logits = self(crops[:, 0], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
            scaled = loss * self.loss_scale.factor
        correct = tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
        return self._gradients(tape, scaled), tf.stack([loss, tf.reduce_mean(correct)])

    def _update(
        self, gradients: Sequence[tf.Tensor], measures: tf.Tensor, requests: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Sum over replicas, decide once for all of them, then update."""
        gradients, finite, logs = self._mean_gradients(gradients)
        measures, requests = sum_over_replicas([measures, requests])
        rates = self.optimizer.rate_of_each()
        logs |= {
            "loss": measures[0] / float(replica_count()),
            "top1": measures[1] / float(replica_count()),
            "learning_rate": rates[-1],  # the classifier's variables come last
            "requests": requests,
        }
        if not self.frozen:
            logs["backbone_learning_rate"] = rates[0]
        applied = [finite] * len(gradients)
        update_on_all_replicas(
            self.optimizer.updates(gradients, self.trainable_variables, applied)
            + self.loss_scale.updates(finite)
        )
        return logs

    def _accumulate(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Return (loss, top-1 accuracy) of a part and the statistics of its batch normalizations."""
        with self.statistics.collect() as statistics:
            gradients, measures = self._learn(batch)
        self._add_to_sums(gradients)
        return measures, statistics[0]

    def _finish(
        self, parts: Sequence[tuple[tf.Tensor, tf.Tensor]], requests: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        measures, statistics = zip(*parts, strict=True)
        self.statistics.move_averages(statistics)
        return self._update(self._take_sums(), tf.reduce_mean(tf.stack(measures), axis=0), requests)

    def _make_step_in_parts(self) -> Callable[[list[Batch], tf.Tensor], dict[str, Any]]:
        accumulate, finish = self.on_replicas(self._accumulate), self.on_replicas(self._finish)
        return lambda parts, requests: finish([accumulate(part) for part in parts], requests)
