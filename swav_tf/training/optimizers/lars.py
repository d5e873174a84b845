"""LARS: LARC without clipping (arXiv 1708.03888; docs/algorithm.md, "Optimiser and schedule")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from swav_tf.method.norms import norms
from swav_tf.training.optimizers.momentum import MomentumOptimizer


def lars_factors(
    parameter_norms: tf.Tensor, gradient_norms: tf.Tensor, *, weight_decay: float, trust_coefficient: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What to multiply each gradient and each parameter by, from the norms of all tensors; vectors like them.

    (g + wd p) trust ||p|| / (||g|| + wd ||p|| + 1e-8) if both norms are positive, else g
    unchanged: no decay, no scaling.
    """
    # One reduction and not two additions: TensorFlow would rewrite these into one AddN, which adds in an order
    # that depends on who else still holds its inputs, and runs would part in the last bit.
    terms = [gradient_norms, weight_decay * parameter_norms, tf.fill(tf.shape(parameter_norms), 1e-8)]
    ratios = trust_coefficient * parameter_norms / tf.reduce_sum(tf.stack(terms), axis=0)
    scaled = (parameter_norms > 0) & (gradient_norms > 0)
    of_gradients = tf.where(scaled, ratios, tf.ones_like(ratios))
    return of_gradients, tf.where(scaled, weight_decay * ratios, tf.zeros_like(ratios))


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

    def factors(
        self, parameters: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Of the gradients the trust ratios, of the parameters these times the weight decay."""
        return lars_factors(
            norms(parameters),
            norms(gradients),
            weight_decay=self.coupled_weight_decay,
            trust_coefficient=self.trust_coefficient,
        )

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        return {**super().get_config(), "trust_coefficient": self.trust_coefficient}
