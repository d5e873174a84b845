"""LARS as the reference uses it: LARC without clipping (arXiv 1708.03888; recipe, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def lars_direction(
    parameter: tf.Tensor, gradient: tf.Tensor, *, weight_decay: float, trust_coefficient: float
) -> tf.Tensor:
    """The gradient with weight decay, scaled by the tensor's own trust ratio; float32.

    (g + wd p) trust ||p|| / (||g|| + wd ||p|| + 1e-8) if both norms are positive, else g
    unchanged: no decay, no scaling.
    """
    parameter_norm = tf.norm(parameter)
    gradient_norm = tf.norm(gradient)
    ratio = trust_coefficient * parameter_norm / (gradient_norm + weight_decay * parameter_norm + 1e-8)
    scaled = (gradient + weight_decay * parameter) * ratio
    return tf.where((parameter_norm > 0) & (gradient_norm > 0), scaled, gradient)


@keras.saving.register_keras_serializable("swav_tf")
class LARS(keras.optimizers.Optimizer):
    """v <- momentum v + direction; p <- p - rate v, on EVERY trainable tensor, BN and biases included.

    The learning rate is outside the momentum buffer. Works in any Keras model; SwAV's own step
    calls `updates`, which can leave out a variable or a whole step without a branch.
    """

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
        # Keras' own weight decay is decoupled from the gradient; this one must not be.
        super().__init__(learning_rate=learning_rate, name=name, weight_decay=None, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay
        self.trust_coefficient = trust_coefficient

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes one momentum buffer a variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """One variable's update, as Keras' own `apply` calls it."""
        momentum = self.momentums[self._get_variable_index(variable)]
        # Keras hands in the TensorFlow variable itself when it updates each device's copy.
        value = variable.value if isinstance(variable, keras.Variable) else variable
        self._update(value, momentum.value, gradient, learning_rate, tf.constant(True))

    def updates(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        applied: Sequence[tf.Tensor],
    ) -> list[tuple[tf.Variable, Any, tuple[Any, ...]]]:
        """One step, for `update_on_all_replicas`, on gradients that are equal on all replicas.

        A variable whose scalar bool in `applied` is false keeps its value and its momentum,
        as if it had no gradient. `iterations` counts every step.
        """
        rate = tf.cast(self.learning_rate, tf.float32)
        steps: list[tuple[tf.Variable, Any, tuple[Any, ...]]] = [
            (variable.value, self._update, (momentum.value, gradient, rate, wanted))
            for variable, momentum, gradient, wanted in zip(
                variables, self.momentums, gradients, applied, strict=True
            )
        ]
        return [*steps, (self.iterations.value, lambda iterations: iterations.assign_add(1), ())]

    def _update(
        self,
        variable: tf.Variable,
        momentum: tf.Variable,
        gradient: tf.Tensor,
        rate: tf.Tensor,
        wanted: tf.Tensor,
    ) -> None:
        direction = lars_direction(
            variable,
            gradient,
            weight_decay=self.coupled_weight_decay,
            trust_coefficient=self.trust_coefficient,
        )
        new_momentum = self.momentum * momentum + direction
        # tf.where and not a product: 0 * NaN is NaN.
        momentum.assign(tf.where(wanted, new_momentum, momentum))
        variable.assign(tf.where(wanted, variable - rate * new_momentum, variable))

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        config = super().get_config()
        config.update(
            momentum=self.momentum,
            weight_decay=self.coupled_weight_decay,
            trust_coefficient=self.trust_coefficient,
        )
        return config
