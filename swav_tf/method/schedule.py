"""The learning rate of every step: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from swav_tf.recipe.pretraining import Optimizer


@keras.saving.register_keras_serializable("swav_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """`linspace(start, peak, warmup_steps)`, both ends included, then a cosine from peak to final.

    The cosine's step t = 0 .. T-1 (T = total_steps - warmup_steps) has the rate
    final + (peak - final) (1 + cos(pi t / T)) / 2. Past the end it stays at t = T.
    """

    def __init__(
        self, *, peak: float, final: float, start: float, warmup_steps: int, total_steps: int
    ) -> None:
        super().__init__()
        self.peak, self.final, self.start = peak, final, start
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    @classmethod
    def of(cls, settings: Optimizer, *, epochs: int, steps_per_epoch: int) -> WarmupCosine:
        """Return the schedule of a recipe."""
        return cls(
            peak=settings.peak_learning_rate,
            final=settings.final_learning_rate,
            start=settings.warmup_start_learning_rate,
            warmup_steps=settings.warmup_epochs * steps_per_epoch,
            total_steps=epochs * steps_per_epoch,
        )

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of a step (from 0) as a float32 scalar."""
        step = tf.cast(step, tf.float32)
        # A warm-up of one step has only its start, as linspace(start, peak, 1) has.
        warmup = self.start + (self.peak - self.start) * step / max(self.warmup_steps - 1, 1)
        cosine_steps = max(self.total_steps - self.warmup_steps, 1)
        t = tf.clip_by_value((step - self.warmup_steps) / cosine_steps, 0.0, 1.0)
        cosine = self.final + (self.peak - self.final) * 0.5 * (1.0 + tf.cos(math.pi * t))
        return tf.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this schedule."""
        return {
            "peak": self.peak,
            "final": self.final,
            "start": self.start,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }
