"""The queue of past projections that balances the codes of small batches (paper, section 4.1)."""

from __future__ import annotations

import tensorflow as tf

from swav_tf.model.replicas import per_replica_variable


class FeatureQueue(tf.Module):
    """One queue of projections per assign crop, newest first, zeros at creation.

    Every replica has its own queue. It starts to fill at `from_step` and joins the codes once its oldest slot is
    filled.

    Args:
        length: projections per crop and replica, >= 1.
        projection_dim: length of a projection.
        from_step: first optimizer step whose projections are pushed.
        assign_crops: number of crops that have codes.
    """

    def __init__(self, *, length: int, projection_dim: int, from_step: int, assign_crops: int = 2) -> None:
        super().__init__(name="feature_queue")
        self.length = length
        self.from_step = from_step
        self.projections = per_replica_variable(
            tf.zeros([assign_crops, length, projection_dim]), "projections"
        )
        self.pushed = per_replica_variable(tf.zeros([], tf.int64), "pushed")  # projections pushed so far

    def in_use(self) -> tf.Tensor:
        """Return 1.0 once the oldest slot is filled, else 0.0."""
        return tf.cast(self.pushed >= self.length, tf.float32)

    def push(self, projections: tf.Tensor, *, step: tf.Tensor, wanted: tf.Tensor) -> None:
        """Insert (assign_crops, B, D) projections in front; the oldest B drop out.

        Nothing changes before `from_step`, or when `wanted` (a scalar bool) is false:
        one non-finite batch must not stay in the queue for an epoch.
        """
        wanted = tf.logical_and(wanted, tf.cast(step, tf.int64) >= self.from_step)
        old = self.projections.read_value()
        rows = tf.shape(projections)[1]
        new = tf.concat([tf.cast(projections, old.dtype), old], axis=1)[:, : self.length]
        self.projections.assign(tf.where(wanted, new, old))
        self.pushed.assign_add(tf.where(wanted, tf.cast(rows, tf.int64), tf.zeros([], tf.int64)))
