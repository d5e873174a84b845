"""LARS as the reference uses it: LARC without clipping (arXiv 1708.03888; recipe, section 5)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from swav_tf.training.momentum import MomentumOptimizer


def lars_direction(
    parameter: tf.Tensor, gradient: tf.Tensor, *, weight_decay: float, trust_coefficient: float
) -> tf.Tensor:
    """The gradient with weight decay, scaled by the tensor's own trust ratio; float32.

    (g + wd p) trust ||p|| / (||g|| + wd ||p|| + 1e-8) if both norms are positive, else g
    unchanged: no decay, no scaling.
    """
    parameter_norm = tf.norm(parameter)
    gradient_norm = tf.norm(gradient)
    # One reduction and not two additions: TensorFlow would rewrite these into one AddN, which adds in an order
    # that depends on who else still holds its inputs, and runs would part in the last bit.
    divisor = tf.reduce_sum(tf.stack([gradient_norm, weight_decay * parameter_norm, tf.constant(1e-8)]))
    ratio = trust_coefficient * parameter_norm / divisor
    scaled = (gradient + weight_decay * parameter) * ratio
    return tf.where((parameter_norm > 0) & (gradient_norm > 0), scaled, gradient)


@keras.saving.register_keras_serializable("swav_tf")
class LARS(MomentumOptimizer):
    """v <- momentum v + direction; p <- p - rate v, on EVERY trainable tensor, BN and biases included."""

    def __init__(
        self,
        learning_rate: Any,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum=momentum, weight_decay=weight_decay, name=name, **kwargs)
        self.trust_coefficient = trust_coefficient

    def direction(self, variable: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """The gradient with weight decay, scaled by the trust ratio."""
        return lars_direction(
            variable,
            gradient,
            weight_decay=self.coupled_weight_decay,
            trust_coefficient=self.trust_coefficient,
        )

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        return {**super().get_config(), "trust_coefficient": self.trust_coefficient}
