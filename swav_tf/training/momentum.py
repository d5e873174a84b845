"""What LARS and SGD share: a momentum buffer without the learning rate in it, and steps that can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class MomentumOptimizer(keras.optimizers.Optimizer):
    """v <- momentum v + direction; p <- p - rate v. The learning rate is outside the momentum buffer.

    Works in any Keras model; the models here call `updates`, which can leave out a variable or a
    whole step without a branch. A subclass says what `direction` a gradient becomes.
    """

    def __init__(self, learning_rate: Any, *, momentum: float, weight_decay: float, **kwargs: Any) -> None:
        # Keras' own weight decay is decoupled from the gradient; this one must not be.
        super().__init__(learning_rate=learning_rate, weight_decay=None, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay

    def direction(self, variable: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """What is added to a variable's momentum, of its shape, float32."""
        raise NotImplementedError

    def rate_of(self, index: int) -> tf.Tensor:
        """The learning rate, a float32 scalar, of the variable of this number in `build`."""
        return tf.cast(self.learning_rate, tf.float32)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes one momentum buffer a variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """One variable's update, as Keras' own `apply` calls it."""
        index = self._get_variable_index(variable)
        # Keras hands in the TensorFlow variable itself when it updates each device's copy.
        value = variable.value if isinstance(variable, keras.Variable) else variable
        self._update(value, self.momentums[index].value, gradient, self.rate_of(index), tf.constant(True))

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
        steps: list[tuple[tf.Variable, Any, tuple[Any, ...]]] = [
            (variable.value, self._update, (momentum.value, gradient, self.rate_of(index), wanted))
            for index, (variable, momentum, gradient, wanted) in enumerate(
                zip(variables, self.momentums, gradients, applied, strict=True)
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
        new_momentum = self.momentum * momentum + self.direction(variable, gradient)
        # tf.where and not a product: 0 * NaN is NaN.
        momentum.assign(tf.where(wanted, new_momentum, momentum))
        variable.assign(tf.where(wanted, variable - rate * new_momentum, variable))

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        config = super().get_config()
        config.update(momentum=self.momentum, weight_decay=self.coupled_weight_decay)
        return config
