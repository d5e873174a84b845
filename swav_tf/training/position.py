"""The position of a run: its step, and the means of the current epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

Logs = dict[str, float]  # what Keras passes to callbacks: the metrics of a step


@dataclass
class Position:
    """Optimizer steps done since the start of the run, and what has been summed up; part of every checkpoint.

    Keras counts batches from the start of `fit`, which after a mid-epoch resume is not the start of an epoch:
    callbacks read the step here.
    """

    steps_per_epoch: int
    total_steps: int
    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None  # mean of the last complete epoch
    sums: dict[str, float] = field(default_factory=dict)  # over the current epoch
    finite_steps: int = 0  # in the current epoch
    # Samples per prototype in the current epoch.
    usage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    validation: dict[str, Any] = field(default_factory=dict)  # latest figures of the evaluations
    # For the progress display alone:
    measured: dict[str, float] = field(default_factory=dict)  # accuracies of the epoch, 0 to 1, by name
    activity: str = ""  # other than training

    @property
    def epoch(self) -> int:
        """Return the epoch, from 0, of the last step."""
        return max(self.step - 1, 0) // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Return whether the last step was the last of its epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    @property
    def at_end(self) -> bool:
        """Return whether the run is complete."""
        return self.step == self.total_steps

    @property
    def best_step(self) -> int | None:
        """Return the step of the best validation, None without one."""
        step: int | None = self.validation.get("best", {}).get("step")
        return step

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Show an activity other than training in the progress display."""
        self.activity = activity
        try:
            yield
        finally:
            self.activity = ""

    def means(self) -> dict[str, float]:
        """Return means over the finite steps of the current epoch."""
        return {key: total / max(self.finite_steps, 1) for key, total in self.sums.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the part that a checkpoint contains."""
        keys = ("step", "first_loss", "last_loss", "sums", "finite_steps", "validation")
        return {key: getattr(self, key) for key in keys} | {"usage": self.usage.tolist()}

    def from_json(self, saved: Mapping[str, Any]) -> None:
        """Restore the position of a checkpoint."""
        for key, value in saved.items():
            setattr(self, key, np.array(value, np.int64) if key == "usage" else value)


class UpdatePosition(keras.callbacks.Callback):
    """Advance the position after each step, and sum up the `averaged` metrics; must be the first callback."""

    def __init__(self, position: Position, averaged: Sequence[str]) -> None:
        super().__init__()
        self.position, self.averaged = position, averaged

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Count one step."""
        position = self.position
        if position.step % position.steps_per_epoch == 0:
            position.sums, position.measured, position.finite_steps = {}, {}, 0
            position.usage = np.zeros_like(position.usage)
        position.step += 1
        for figure in ("knn_top1", "view_retrieval"):  # of the weights before this step
            position.validation.pop(figure, None)
        if logs["finite"]:
            position.finite_steps += 1
            for key in self.averaged:
                position.sums[key] = position.sums.get(key, 0.0) + logs[key]
            if position.first_loss is None:
                position.first_loss = logs["loss"]
        if position.usage.size:
            position.usage = position.usage + self.model.assignments
        if position.at_epoch_end and position.finite_steps:
            position.last_loss = position.means()["loss"]
