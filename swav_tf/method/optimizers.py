"""LARS, SGD and Adam, applied once to gradients that are already summed over replicas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from swav_tf.model.replicas import Update
from swav_tf.recipe.classifier import SGDSettings


class MomentumOptimizer(keras.optimizers.Optimizer):
    """v <- momentum v + a g + b p; p <- p - rate v. The learning rate is outside the momentum buffer.

    Works in any Keras model; the models here call `updates`, which can skip a variable or a complete step without
    a branch. A subclass defines the `factors` a and b of each variable.

    A network has a hundred small tensors for each large one, and on a GPU each operation on a small one costs a
    launch. So the factors of all variables are computed as vectors, and the rest is one fused operation per variable.
    """

    def __init__(
        self, learning_rate: Any, *, momentum: float = 0.9, weight_decay: float = 1e-6, **kwargs: Any
    ) -> None:
        # Keras' own weight decay is decoupled from the gradient; this one must not be.
        super().__init__(learning_rate=learning_rate, weight_decay=None, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay

    def factors(
        self, parameters: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the factors of each gradient and of each parameter: two float32 vectors over the variables."""
        raise NotImplementedError

    def rate_of_each(self) -> tf.Tensor:
        """Return the learning rate of each variable in the order of `build`, float32."""
        return tf.fill([len(self.momentums)], tf.cast(self.learning_rate, tf.float32))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create one momentum buffer per variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    @property
    def buffers(self) -> dict[str, list[keras.Variable]]:
        """Return the state of each variable by its name in checkpoints, in the order of `build`."""
        return {"momentum": self.momentums}

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable, as Keras' own `apply` calls it."""
        index = self._get_variable_index(variable)
        # Keras passes the TensorFlow variable itself when it updates each device's copy.
        value = variable.value if isinstance(variable, keras.Variable) else variable
        [of_gradient], [of_parameter] = map(tf.unstack, self.factors([value], [gradient]))
        rate, momentum = self.rate_of_each()[index], tf.constant(self.momentum)
        _update(value, self.momentums[index].value, gradient, of_gradient, of_parameter, rate, momentum)

    def updates(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        applied: Sequence[tf.Tensor],
    ) -> list[Update]:
        """Return one step, for `update_on_all_replicas`, on gradients that are equal on all replicas.

        A variable whose scalar bool in `applied` is false keeps its value and its momentum,
        as if it had no gradient. `iterations` counts every step.
        """
        steps = self._steps(gradients, variables, applied)
        return [*steps, (self.iterations.value, lambda iterations: iterations.assign_add(1), ())]

    def _steps(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        applied: Sequence[tf.Tensor],
    ) -> list[Update]:
        parameters = [tf.convert_to_tensor(variable) for variable in variables]
        wanted = tf.stack(applied)
        # v <- 1 v + 0 g + 0 p; p <- p - 0 v: skipped variables keep their values.
        zeros, ones = tf.zeros(wanted.shape), tf.ones(wanted.shape)
        of_each = [
            tf.unstack(tf.where(wanted, numbers, otherwise))
            for numbers, otherwise in (
                *((numbers, zeros) for numbers in self.factors(parameters, gradients)),
                (self.rate_of_each(), zeros),
                (self.momentum * ones, ones),
            )
        ]
        return [
            (variable.value, _update, (momentum.value, gradient, *numbers))
            for variable, momentum, gradient, *numbers in zip(
                variables, self.momentums, gradients, *of_each, strict=True
            )
        ]

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this optimizer."""
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
    # 0 * NaN is NaN, but this product is 0. Two terms only: TensorFlow adds three in varying order.
    direction = tf.math.multiply_no_nan(gradient, of_gradient) + of_parameter * variable
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=accumulated.handle, lr=rate, grad=direction, momentum=momentum
    )


def norms(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the Euclidean norm of each float32 tensor, as one vector; not finite where an element is not.

    Each tensor is read by one operation, and the rest is vectorized: on a GPU each small operation costs a launch.
    """
    return tf.sqrt(2.0 * tf.stack([tf.nn.l2_loss(tensor) for tensor in tensors]))


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
        """Return those of (g + wd p) trust ||p|| / (||g|| + wd ||p|| + 1e-8) if both norms are positive.

        Otherwise it is g, unchanged: no decay, no scaling.
        """
        parameter_norms, gradient_norms = norms(parameters), norms(gradients)
        # One reduction instead of two additions: TensorFlow would rewrite these into one AddN, whose order depends on
        # which inputs are still in use, and runs would differ in the last bit.
        weight_decay = self.coupled_weight_decay
        terms = [gradient_norms, weight_decay * parameter_norms, tf.fill(tf.shape(parameter_norms), 1e-8)]
        ratios = self.trust_coefficient * parameter_norms / tf.reduce_sum(tf.stack(terms), axis=0)
        scaled = (parameter_norms > 0) & (gradient_norms > 0)
        of_gradients = tf.where(scaled, ratios, tf.ones_like(ratios))
        return of_gradients, tf.where(scaled, weight_decay * ratios, tf.zeros_like(ratios))

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this optimizer."""
        return {**super().get_config(), "trust_coefficient": self.trust_coefficient}


@keras.saving.register_keras_serializable("swav_tf")
class Adam(MomentumOptimizer):
    """Adam (arXiv 1412.6980) with coupled weight decay, as PyTorch has it; `momentum` is beta 1.

    The bias corrections count the steps of each variable, so that prototypes start afresh when they are unfrozen.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        second_momentum: float = 0.999,
        name: str = "adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum=momentum, weight_decay=weight_decay, name=name, **kwargs)
        self.second_momentum = second_momentum

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create two buffers and a count of steps per variable."""
        if self.built:
            return
        super().build(variables)
        self.squares = [self.add_variable_from_reference(v, name="squares") for v in variables]
        self.steps = [self.add_variable((1,), name="steps") for _ in variables]

    @property
    def buffers(self) -> dict[str, list[keras.Variable]]:
        """Return the state of each variable by its name in checkpoints, in the order of `build`."""
        return super().buffers | {"squares": self.squares, "steps": self.steps}

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable, as Keras' own `apply` calls it."""
        number = self._get_variable_index(variable)
        target, function, arguments = self._update_of(number, gradient, variable, tf.constant(True))
        function(target, *arguments)

    def _steps(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        applied: Sequence[tf.Tensor],
    ) -> list[Update]:
        each = enumerate(zip(gradients, variables, applied, strict=True))
        return [self._update_of(number, *one) for number, one in each]

    def _update_of(self, number: int, gradient: tf.Tensor, variable: Any, wanted: tf.Tensor) -> Update:
        value = variable.value if isinstance(variable, keras.Variable) else variable
        state = (buffer[number].value for buffer in (self.momentums, self.squares, self.steps))
        rate = tf.cast(self.learning_rate, tf.float32)
        numbers = (rate, self.momentum, self.second_momentum, self.coupled_weight_decay)
        return value, _adam_update, (*state, gradient, tf.cast(wanted, tf.float32), *numbers)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this optimizer."""
        return {**super().get_config(), "second_momentum": self.second_momentum}


def _adam_update(
    variable: tf.Variable,
    first: tf.Variable,
    second: tf.Variable,
    steps: tf.Variable,
    gradient: tf.Tensor,
    wanted: tf.Tensor,
    rate: tf.Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """Do a step where `wanted` is 1; where it is 0 nothing changes, also if the gradient is not finite."""
    count = steps.assign_add(wanted[tf.newaxis])[0]
    direction = tf.math.multiply_no_nan(gradient + weight_decay * variable, wanted)
    second_share = 1.0 - (1.0 - beta2) * wanted
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle, m=first.handle, v=second.handle, grad=direction, epsilon=1e-8,
        lr=wanted * rate,
        beta1=1.0 - (1.0 - beta1) * wanted,
        beta2=second_share,
        beta1_power=wanted * tf.pow(beta1, count),
        beta2_power=wanted * tf.pow(beta2, count),
    )  # fmt: skip


def epoch_shares(settings: SGDSettings, *, epochs: int) -> list[float]:
    """Return each epoch's factor of the initial learning rate (docs/algorithm.md, "Linear probe").

    cosine: (1 + cos(pi epoch / epochs)) / 2, which would reach 0 in the epoch after the last.
    steps: decay_factor to the number of decay_epochs that have started.
    """
    if settings.decay == "cosine":
        return [0.5 * (1.0 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    return [
        settings.decay_factor ** sum(epoch >= start for start in settings.decay_epochs)
        for epoch in range(epochs)
    ]


@keras.saving.register_keras_serializable("swav_tf")
class EpochSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A factor of the learning rate for each epoch, equal in all of its steps."""

    def __init__(self, shares: Sequence[float], *, steps_per_epoch: int) -> None:
        super().__init__()
        self.shares, self.steps_per_epoch = list(shares), steps_per_epoch

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the factor of a step (from 0) as a float32 scalar; past the end that of the last epoch."""
        epoch = tf.minimum(tf.cast(step, tf.int64) // self.steps_per_epoch, len(self.shares) - 1)
        return tf.gather(tf.constant(self.shares, tf.float32), epoch)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this schedule."""
        return {"shares": self.shares, "steps_per_epoch": self.steps_per_epoch}


@keras.saving.register_keras_serializable("swav_tf")
class SGD(MomentumOptimizer):
    """v <- momentum v + (g + weight_decay p); p <- p - share rate v, each variable with its own rate.

    `rates` are in the order of `build`; `share`, a number or a schedule, is the factor of all of them.
    """

    def __init__(
        self,
        share: Any,
        *,
        rates: Sequence[float],
        weight_decay: float = 0.0,
        name: str = "sgd_by_part",
        **kwargs: Any,
    ) -> None:
        super().__init__(share, weight_decay=weight_decay, name=name, **kwargs)
        self.rates = list(rates)

    def factors(
        self, parameters: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return 1 for gradients, and the weight decay for parameters."""
        return tf.ones([len(parameters)]), tf.fill([len(parameters)], self.coupled_weight_decay)

    def rate_of_each(self) -> tf.Tensor:
        """Return each variable's own rate times the current share."""
        return tf.cast(self.learning_rate, tf.float32) * tf.constant(self.rates, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this optimizer."""
        config = super().get_config()
        config["share"] = config.pop("learning_rate")
        return {**config, "rates": self.rates}
