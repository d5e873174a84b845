"""SGD as probes and fine-tuning use it: momentum, coupled weight decay, a rate for each part, set by the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from swav_tf.classifier_recipe import SGDSettings
from swav_tf.training.optimizers.momentum import MomentumOptimizer


def epoch_shares(settings: SGDSettings, *, epochs: int) -> list[float]:
    """What the first epoch's learning rate is multiplied by in each epoch (docs/algorithm.md, "Linear probe").

    cosine: (1 + cos(pi epoch / epochs)) / 2, which would reach 0 in the epoch after the last.
    steps: decay_factor to the number of decay_epochs that have begun.
    """
    if settings.decay == "cosine":
        return [0.5 * (1.0 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    return [
        settings.decay_factor ** sum(epoch >= start for start in settings.decay_epochs)
        for epoch in range(epochs)
    ]


@keras.saving.register_keras_serializable("swav_tf")
class EpochSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A share of the learning rate for each epoch, the same in all of its steps."""

    def __init__(self, shares: Sequence[float], *, steps_per_epoch: int) -> None:
        super().__init__()
        self.shares, self.steps_per_epoch = list(shares), steps_per_epoch

    def __call__(self, step: Any) -> tf.Tensor:
        """The share of a step (from 0) as a float32 scalar; past the end that of the last epoch."""
        epoch = tf.minimum(tf.cast(step, tf.int64) // self.steps_per_epoch, len(self.shares) - 1)
        return tf.gather(tf.constant(self.shares, tf.float32), epoch)

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this schedule again."""
        return {"shares": self.shares, "steps_per_epoch": self.steps_per_epoch}


@keras.saving.register_keras_serializable("swav_tf")
class SGD(MomentumOptimizer):
    """v <- momentum v + (g + weight_decay p); p <- p - share rate v, each variable with a rate of its own.

    Args:
        share: what all rates are multiplied by: a number, or a schedule.
        rates: one for each variable, in the order of `build`.
        momentum, weight_decay: of all variables.
    """

    def __init__(
        self,
        share: Any,
        *,
        rates: Sequence[float],
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        name: str = "sgd_by_part",
        **kwargs: Any,
    ) -> None:
        super().__init__(share, momentum=momentum, weight_decay=weight_decay, name=name, **kwargs)
        self.rates = list(rates)

    def factors(
        self, parameters: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Of the gradients 1, of the parameters the weight decay."""
        return tf.ones([len(parameters)]), tf.fill([len(parameters)], self.coupled_weight_decay)

    def rate_of_each(self) -> tf.Tensor:
        """Each variable's own rate, times the share of now."""
        return tf.cast(self.learning_rate, tf.float32) * tf.constant(self.rates, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this optimiser again."""
        config = super().get_config()
        config["share"] = config.pop("learning_rate")
        return {**config, "rates": self.rates}
