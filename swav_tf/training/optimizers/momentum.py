"""What LARS and SGD share: a momentum buffer without the learning rate in it, and steps that can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class MomentumOptimizer(keras.optimizers.Optimizer):
    """v <- momentum v + a g + b p; p <- p - rate v. The learning rate is outside the momentum buffer.

    Works in any Keras model; the models here call `updates`, which can leave out a variable or a
    whole step without a branch. A subclass says what `factors` a and b each variable has.

    A network has a hundred small tensors for one large, and on a GPU each operation on a small one costs
    its launch: what is one number a variable is computed as a vector over all of them, and the rest is
    one fused operation.
    """

    def __init__(self, learning_rate: Any, *, momentum: float, weight_decay: float, **kwargs: Any) -> None:
        # Keras' own weight decay is decoupled from the gradient; this one must not be.
        super().__init__(learning_rate=learning_rate, weight_decay=None, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay

    def factors(
        self, parameters: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What each gradient and each parameter is multiplied by: two float32 vectors, one number a variable."""
        raise NotImplementedError

    def rate_of_each(self) -> tf.Tensor:
        """The learning rate of each variable in the order of `build`, float32."""
        return tf.fill([len(self.momentums)], tf.cast(self.learning_rate, tf.float32))

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
        [of_gradient], [of_parameter] = map(tf.unstack, self.factors([value], [gradient]))
        rate, momentum = self.rate_of_each()[index], tf.constant(self.momentum)
        _update(value, self.momentums[index].value, gradient, of_gradient, of_parameter, rate, momentum)

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
        parameters = [tf.convert_to_tensor(variable) for variable in variables]
        wanted = tf.stack(applied)
        # v <- 1 v + 0 g + 0 p; p <- p - 0 v: what is not wanted stays as it is.
        zeros, ones = tf.zeros(wanted.shape), tf.ones(wanted.shape)
        of_each = [
            tf.unstack(tf.where(wanted, numbers, otherwise))
            for numbers, otherwise in (
                *((numbers, zeros) for numbers in self.factors(parameters, gradients)),
                (self.rate_of_each(), zeros),
                (self.momentum * ones, ones),
            )
        ]
        steps: list[tuple[tf.Variable, Any, tuple[Any, ...]]] = [
            (variable.value, _update, (momentum.value, gradient, *numbers))
            for variable, momentum, gradient, *numbers in zip(
                variables, self.momentums, gradients, *of_each, strict=True
            )
        ]
        return [*steps, (self.iterations.value, lambda iterations: iterations.assign_add(1), ())]

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        config = super().get_config()
        config.update(momentum=self.momentum, weight_decay=self.coupled_weight_decay)
        return config


def _update(
    variable: tf.Variable,
    accumulated: tf.Variable,
    gradient: tf.Tensor,
    of_gradient: tf.Tensor,
    of_parameter: tf.Tensor,
    rate: tf.Tensor,
    momentum: tf.Tensor,
) -> None:
    # 0 * NaN is NaN, and this product's is 0. Two terms only: TensorFlow adds three in an order of its own.
    direction = tf.math.multiply_no_nan(gradient, of_gradient) + of_parameter * variable
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=accumulated.handle, lr=rate, grad=direction, momentum=momentum
    )
