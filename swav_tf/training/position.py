"""Where a run stands: which step of which epoch, and the means of the epoch so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from swav_tf.method.swav import SwAV


@dataclass
class Position:
    """Optimiser steps done, counted over the whole run. Part of every checkpoint.

    `fit` counts from the batch it started with; after a mid-epoch resume that is not the first
    of the epoch, so all callbacks look here.
    """

    steps_per_epoch: int
    total_steps: int
    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None  # mean of the last whole epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch so far
    finite_steps: int = 0  # of the epoch so far
    usage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # samples by prototype, likewise
    validation: dict[str, Any] = field(default_factory=dict)  # accuracies of the last and of the best epoch

    @property
    def epoch(self) -> int:
        """The epoch (from 0) that the last step belonged to."""
        return max(self.step - 1, 0) // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was its epoch's last."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def means(self) -> dict[str, float]:
        """Means over the finite steps of the epoch so far."""
        return {key: total / max(self.finite_steps, 1) for key, total in self.sums.items()}

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        keys = ("step", "first_loss", "last_loss", "sums", "finite_steps", "validation")
        return {key: getattr(self, key) for key in keys} | {"usage": self.usage.tolist()}

    def from_json(self, saved: Mapping[str, Any]) -> None:
        """Goes to where a checkpoint was written."""
        for key, value in saved.items():
            setattr(self, key, np.array(value, np.int64) if key == "usage" else value)


class CountSteps(keras.callbacks.Callback):
    """Keeps the position; must be the first callback.

    Args:
        position: is moved on.
        means_of: the measures of a step whose means over an epoch are wanted; "loss" must be one.
    """

    def __init__(self, position: Position, means_of: Sequence[str]) -> None:
        super().__init__()
        self.position, self.means_of = position, means_of

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Counts one step."""
        position, logs = self.position, logs or {}
        if position.step % position.steps_per_epoch == 0:
            position.sums, position.finite_steps = {}, 0
            position.usage = np.zeros_like(position.usage)
        position.step += 1
        if logs["finite"]:
            position.finite_steps += 1
            for key in self.means_of:
                position.sums[key] = position.sums.get(key, 0.0) + logs[key]
            if position.first_loss is None:
                position.first_loss = logs["loss"]
        if position.at_epoch_end and position.finite_steps:
            position.last_loss = position.means()["loss"]


class CountAssignments(keras.callbacks.Callback):
    """Counts the epoch's samples by prototype; comes right after `CountSteps`."""

    model: SwAV

    def __init__(self, position: Position) -> None:
        super().__init__()
        self.position = position

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Adds the step's."""
        self.position.usage = self.position.usage + self.model.assignments
