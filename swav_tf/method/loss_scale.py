"""Dynamic loss scaling for float16, decided on the sum of all replicas' gradients."""

from __future__ import annotations

import tensorflow as tf

from swav_tf.model.replicas import Update


class LossScale(tf.Module):
    """A factor that keeps half-precision gradients away from underflow.

    It is halved after a step with a non-finite gradient and doubled after `growth_steps` finite
    ones in a row. The caller decides 'finite?' on the summed gradients, so that all replicas
    agree: a test of each replica's own gradients would let their weights drift apart.

    Args:
        enabled: if false the factor stays 1 (float32, bfloat16).
    """

    def __init__(self, *, enabled: bool, initial: float = 2.0**15, growth_steps: int = 2000) -> None:
        super().__init__(name="loss_scale")
        self.enabled = enabled
        self.growth_steps = growth_steps
        # Equal on all replicas; `update_on_all_replicas` writes them.
        self.factor = tf.Variable(tf.constant(initial if enabled else 1.0), trainable=False, name="factor")
        self.finite_steps = tf.Variable(tf.constant(0, tf.int64), trainable=False, name="finite_steps")

    def updates(self, finite: tf.Tensor) -> list[Update]:
        """Return the updates of a step, for `update_on_all_replicas`."""
        if not self.enabled:
            return []
        return [(self.factor, self._update, (self.finite_steps, finite))]

    def _update(self, factor: tf.Variable, finite_steps: tf.Variable, finite: tf.Tensor) -> None:
        run = finite_steps + 1
        grown = tf.where(run >= self.growth_steps, factor * 2.0, factor)
        halved = tf.maximum(factor * 0.5, 1.0)
        factor.assign(tf.where(finite, tf.minimum(grown, 2.0**24), halved))
        start_again = tf.logical_or(tf.logical_not(finite), run >= self.growth_steps)
        finite_steps.assign(tf.where(start_again, tf.zeros_like(run), run))
