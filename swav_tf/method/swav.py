"""SwAV as a `keras.Model` with its own train step (arXiv 2006.09882; docs/algorithm.md, "One step")."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swav_tf.method.feature_queue import FeatureQueue
from swav_tf.method.loss import swapped_prediction_loss
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.method.sinkhorn import sinkhorn
from swav_tf.model.head import Prototypes
from swav_tf.model.replicas import replica_count, sum_over_replicas, update_on_all_replicas
from swav_tf.recipe.pretraining import Method

ASSIGN_CROPS = 2  # codes are computed from crops 0 and 1

# The crops of a batch: one uint8 tensor (B, count, size, size, 3) for each group of crops.
Crops = Sequence[tf.Tensor]


@keras.saving.register_keras_serializable("swav_tf")
class SwAV(ReplicatedModel):
    """Backbone, head and prototypes, trained by swapped prediction.

    Use `build_swav` to build one from a recipe. `fit` trains it with any Keras callbacks on
    batches of crops; `train_on_crops` does one step on given crops.

    Args:
        head: features (n, F) to projections (n, D).
        prototypes: normalized projections to scores.
        method: temperature, epsilon, Sinkhorn iterations, frozen steps.
        queue: past projections that join the batch when codes are computed, or None.
        **common: arguments of `ReplicatedModel`: backbone, mean, std, loss_scale and accumulation_steps.
    """

    parts = ("backbone", "head", "prototypes")

    def __init__(
        self,
        *,
        head: keras.Model,
        prototypes: Prototypes,
        method: Method,
        queue: FeatureQueue | None,
        **common: Any,
    ) -> None:
        super().__init__(name="swav", **common)
        self.head = head
        self.prototypes = prototypes
        self.method = method
        self.queue = queue
        self.assignments = np.zeros(prototypes.count, np.int64)  # samples of the last batch by prototype
        if not prototypes.built:
            prototypes.build((None, head.output_shape[-1]))
        self.finish_init()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor in the form of Keras' files."""
        queue = self.queue and {
            "length": self.queue.length,
            "projection_dim": int(self.queue.projections.shape[-1]),
            "from_step": self.queue.from_step,
            "assign_crops": int(self.queue.projections.shape[0]),
        }
        return {
            **super().get_config(),
            "head": keras.saving.serialize_keras_object(self.head),
            "prototypes": keras.saving.serialize_keras_object(self.prototypes),
            "method": self.method.model_dump(mode="json"),
            "queue": queue,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Build the model that `get_config` described."""
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("head", "prototypes")
        }
        queue = FeatureQueue(**config["queue"]) if config["queue"] else None
        method = Method(**config["method"])
        return super().from_config({**config, **parts, "queue": queue, "method": method}, custom_objects)

    # === Forward ===

    def call(self, crops: Crops, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Return projections (V, B, D), of length 1, and scores (V, B, K), both float32."""
        batch = tf.shape(crops[0])[0]
        # Adjacent groups of one size go through the backbone together: its BN statistics are per size.
        sizes = itertools.groupby(map(_by_crop, crops), key=lambda group: group.shape[1])
        same = [tf.concat(list(groups), axis=0) for _, groups in sizes]
        features = [self.backbone(self.normalize(images), training=training) for images in same]
        projections, scores = self.project(tf.concat(features, axis=0), training=training)
        crop_count = sum(group.shape[1] for group in crops)
        projections = tf.reshape(projections, [crop_count, batch, projections.shape[-1]])
        return projections, tf.reshape(scores, [crop_count, batch, scores.shape[-1]])

    def project(self, features: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Return projections (n, D), of length 1, and scores (n, K) of features (n, F); float32."""
        projections = tf.cast(self.head(features, training=training), tf.float32)
        projections = tf.math.l2_normalize(projections, axis=-1, epsilon=1e-24)
        return projections, self.prototypes(projections)

    def codes(self, projections: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        """Return codes (2, B, K) of the assign crops, balanced with the queue and over all replicas.

        Args:
            projections: (>= 2, B, D); only B is used.
            scores: (>= 2, B, K).
        """
        scores = scores[:ASSIGN_CROPS]
        row_weights = None
        if self.queue is not None:
            # Past projections, scored by the current prototypes, precede the batch.
            scores = tf.concat([self.prototypes(self.queue.projections.read_value()), scores], axis=1)
            in_use = tf.fill([self.queue.length], self.queue.in_use())
            row_weights = tf.concat([in_use, tf.ones(tf.shape(projections)[1:2])], axis=0)
        codes = sinkhorn(
            scores,
            epsilon=self.method.epsilon,
            iterations=self.method.sinkhorn_iterations,
            row_weights=row_weights,
        )
        return codes[:, -tf.shape(projections)[1] :]

    # === One step, as one replica sees it ===

    def train_step(self, crops: Crops, requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Do one optimizer step on this replica's share of a complete batch."""
        self.normalize_prototypes()
        with tf.GradientTape() as tape:
            projections, scores = self(crops, training=True)
            codes = self.codes(projections, scores)
            loss = swapped_prediction_loss(scores, codes, temperature=self.method.temperature)
            scaled = loss * self.loss_scale.factor
        gradients = self._gradients(tape, scaled)
        return self._update(gradients, loss, projections[:ASSIGN_CROPS], codes, requests)

    def normalize_prototypes(self) -> None:
        """Normalize each prototype to length 1, in place and without a gradient."""
        update_on_all_replicas(
            [(self.prototypes.kernel.value, lambda w: w.assign(tf.math.l2_normalize(w, axis=0)), ())]
        )

    def _update(
        self,
        gradients: Sequence[tf.Tensor],
        loss: tf.Tensor,
        projections: tf.Tensor,
        codes: tf.Tensor,
        requests: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Sum over replicas, then decide once for all of them, then update."""
        step = self.optimizer.iterations.value
        rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        gradients, finite, of_gradients = self._mean_gradients(gradients)

        if self.queue is not None:
            self.queue.push(projections, step=step, wanted=finite)
        logs = self._diagnostics(loss, projections, codes, requests) | {"learning_rate": rate} | of_gradients
        thawed = step >= (self.method.prototypes_frozen_steps or 0)
        frozen_kernel = self.prototypes.kernel
        applied = [
            tf.logical_and(finite, thawed) if variable is frozen_kernel else finite
            for variable in self.trainable_variables
        ]
        update_on_all_replicas(
            self.optimizer.updates(gradients, self.trainable_variables, applied)
            + self.loss_scale.updates(finite)
        )
        return logs

    def _diagnostics(
        self, loss: tf.Tensor, projections: tf.Tensor, codes: tf.Tensor, requests: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Return metrics of the complete batch that show learning or collapse, in one all-reduce."""
        entropy = -tf.reduce_mean(tf.reduce_sum(tf.math.xlogy(codes, codes), axis=-1))
        mean_projection = tf.reduce_mean(projections, axis=[0, 1])
        best = tf.reshape(tf.argmax(codes, axis=-1), [-1])
        assignments = tf.math.unsorted_segment_sum(tf.ones_like(best, tf.float32), best, codes.shape[-1])
        loss, entropy, mean_projection, assignments, requests = sum_over_replicas(
            [loss, entropy, mean_projection, assignments, requests]
        )
        replicas = float(replica_count())
        return {
            "loss": loss / replicas,
            "code_entropy": entropy / replicas,
            # The total variance of unit vectors: 0 if all projections are equal, near 1 if they are spread out.
            "projection_spread": 1.0 - tf.reduce_sum(tf.square(mean_projection / replicas)),
            "assignments": assignments,
            "requests": requests,
        }

    # === The same step in parts: two passes over the data, so that codes cover the complete batch ===

    def _first_pass(self, crops: Crops) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the assign crops' projections and scores, and leave the running averages unchanged."""
        # Layers of other libraries have a state of their own, such as the seeds of dropout: put it back.
        states = [variable.value for variable in self.non_trainable_variables]
        before = [tf.identity(state) for state in states]
        with self.statistics.collect():
            projections, scores = self(crops, training=True)
        with tf.control_dependencies([projections, scores]):
            for state, value in zip(states, before, strict=True):
                state.assign(value)
        return projections[:ASSIGN_CROPS], scores[:ASSIGN_CROPS]

    def _codes_of_parts(
        self, parts: Sequence[tuple[tf.Tensor, tf.Tensor]]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        projections = tf.concat([part[0] for part in parts], axis=1)
        codes = self.codes(projections, tf.concat([part[1] for part in parts], axis=1))
        return projections, tf.split(codes, len(parts), axis=1)

    def _accumulate(self, crops: Crops, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss of a part and the statistics of its batch normalizations."""
        with self.statistics.collect() as statistics, tf.GradientTape() as tape:
            _, scores = self(crops, training=True)
            loss = swapped_prediction_loss(scores, codes, temperature=self.method.temperature)
            scaled = loss * self.loss_scale.factor
        self._add_to_sums(self._gradients(tape, scaled))
        return loss, statistics[0]

    def _finish(
        self,
        parts: Sequence[tuple[tf.Tensor, tf.Tensor]],
        projections: tf.Tensor,
        codes: Sequence[tf.Tensor],
        requests: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        losses, statistics = zip(*parts, strict=True)
        self.statistics.move_averages(statistics)
        return self._update(
            self._take_sums(),
            tf.reduce_mean(tf.stack(losses)),  # not add_n, whose order varies
            projections,
            tf.concat(codes, axis=1),
            requests,
        )

    def _make_step_in_parts(self) -> Callable[[list[Crops], tf.Tensor], dict[str, Any]]:
        begin = self.on_replicas(self.normalize_prototypes)
        first_pass, assign = self.on_replicas(self._first_pass), self.on_replicas(self._codes_of_parts)
        accumulate, finish = self.on_replicas(self._accumulate), self.on_replicas(self._finish)

        def step(parts: list[Crops], requests: tf.Tensor) -> dict[str, Any]:
            begin()
            projections, codes = assign([first_pass(part) for part in parts])
            done = [accumulate(part, part_codes) for part, part_codes in zip(parts, codes, strict=True)]
            return finish(done, projections, codes, requests)

        return step

    # === One step on given crops ===

    def train_on_crops(self, crops: Crops) -> dict[str, float]:
        """Do one optimizer step on one batch of crops, and return its metrics.

        Args:
            crops: for each group a uint8 array (B, count, size, size, 3); crop j of row b must
                come from the same image in all groups.
        """
        parts = [tf.split(tf.convert_to_tensor(group), self.accumulation_steps) for group in crops]
        return self.make_train_function()(iter(zip(*parts, strict=True)))

    def _keep(self, local: dict[str, np.ndarray]) -> None:
        self.assignments = local.pop("assignments").astype(np.int64)


def _by_crop(group: tf.Tensor) -> tf.Tensor:
    """Reshape (B, count, size, size, 3) to (count * B, size, size, 3), crop by crop."""
    shape = group.shape
    return tf.reshape(tf.transpose(group, [1, 0, 2, 3, 4]), [-1, *shape[2:]])
