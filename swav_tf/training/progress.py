"""The progress of a training run: one line per epoch, and below it a live line on a terminal."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Final

import keras
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column

from swav_tf.plumbing.log import console, log
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.position import Logs, Position

LOSS_SMOOTHING: Final = 0.9
# Shorter epochs have a line only as often as this, after an evaluation and at the end.
EPOCH_SECONDS: Final = 2.0
LINE_SECONDS: Final = 30.0  # between lines within an epoch, where there is no terminal


class ShowProgress(keras.callbacks.Callback):
    """Log a line at the end of an epoch; in between show a live line on a terminal; elsewhere log a line at intervals.

    Next to the loss it shows `chance`, the name and value of the loss of an untrained model.
    """

    def __init__(self, recipe: AnyRecipe, position: Position, *, chance: tuple[str, float]) -> None:
        super().__init__()
        self.recipe, self.position = recipe, position
        self.chance = f"{chance[0]} {chance[1]:.3f}"
        self.loss: float | None = None  # smoothed
        self._first_step = position.step
        # When the second step of this process began: the first one traces the graph.
        self._began: float | None = None
        self._epoch_began = self._timed_from = self._logged = time.perf_counter()
        self._timed_step = position.step  # at `_timed_from`
        self._speed = "- images/s"
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.fields[shown].stage}", style="cyan", table_column=Column(no_wrap=True)),
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            Remaining(compact=True),
            TextColumn(
                "{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console(),
            refresh_per_second=4,
            expand=True,  # on a narrow terminal the last column is cut
        )

    @property
    def stage(self) -> str:
        """Return what the run does now."""
        recipe, step, steps_per_epoch = self.recipe, self.position.step, self.position.steps_per_epoch
        if self.position.activity:
            return self.position.activity
        if step == self._first_step:
            return "compiling"
        phases = {}
        if isinstance(recipe, Recipe):
            queue_from = recipe.method.queue.from_epoch * steps_per_epoch
            queue_steps = recipe.queue_length // recipe.train.batch_size
            phases = {
                "freeze": (0, recipe.frozen_steps(steps_per_epoch)),
                "warm-up": (0, recipe.optimizer.warmup_epochs * steps_per_epoch),
                "queue filling": (queue_from, queue_from + queue_steps),
            }
        return ", ".join(name for name, (first, end) in phases.items() if first <= step < end) or "training"

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Start the live line."""
        if self._task is None and console().is_terminal:
            total, done = self.position.total_steps, self.position.step
            epoch = f"{done // self.position.steps_per_epoch + 1}/{self.recipe.train.epochs}"
            self._task = self._bar.add_task(
                "", total=total, completed=done, epoch=epoch, figures="", shown=self
            )
            self._bar.start()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Start the clocks."""
        position, now = self.position, time.perf_counter()
        starts_epoch = position.step % position.steps_per_epoch == 0
        if starts_epoch:
            self._epoch_began = now
        if position.step == self._first_step + 1:
            self._began = now
        if starts_epoch or position.step == self._first_step + 1:
            self._timed_from, self._timed_step = now, position.step

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Show the step."""
        position, now = self.position, time.perf_counter()
        if logs["finite"]:
            before = logs["loss"] if self.loss is None else self.loss
            self.loss = LOSS_SMOOTHING * before + (1 - LOSS_SMOOTHING) * logs["loss"]
        if (timed := position.step - self._timed_step) and position.step > self._first_step + 1:
            speed = timed * self.recipe.train.batch_size / max(now - self._timed_from, 1e-9)
            self._speed = f"{speed:,.0f} images/s"
        loss = "-" if self.loss is None else f"{self.loss:.3f}"
        epoch = f"{position.epoch + 1}/{self.recipe.train.epochs}"
        figures = f"smoothed loss {loss}  {self._speed}  lr {logs.get('learning_rate', 0.0):.4g}"
        if self._task is not None:
            self._bar.update(self._task, completed=position.step, epoch=epoch, figures=figures)
        elif now - self._logged >= LINE_SECONDS and not position.at_epoch_end:
            self._logged = now
            steps = f"step {position.step}/{position.total_steps}"
            log.info(f"epoch {epoch}  {steps}  {self.stage}  {figures}  {self._left(now)}")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Show the epoch, after its evaluation."""
        position, now = self.position, time.perf_counter()
        due = now - self._logged >= EPOCH_SECONDS or position.measured or position.at_end
        if not (position.at_epoch_end and due):
            return
        self._logged = now
        means = position.means()
        accuracies = {"top-1": means["top1"]} if "top1" in means else {}
        took = timedelta(seconds=round(now - self._epoch_began))
        parts = [
            f"epoch {position.epoch + 1}/{self.recipe.train.epochs}",
            f"loss {means.get('loss', math.nan):.3f} ({self.chance})",
            *(f"{name} {100 * share:.1f} %" for name, share in (accuracies | position.measured).items()),
        ]
        if used := int(np.count_nonzero(position.usage)):
            parts.append(f"prototypes {used}/{position.usage.size}")
        parts += [self._speed, str(took)]
        log.info("  ".join(parts if position.at_end else [*parts, self._left(now)]))

    def _left(self, now: float) -> str:
        timed = self.position.step - self._first_step - 1
        remaining = self.position.total_steps - self.position.step
        if self._began is None or timed <= 0:
            return "-:-- left"
        return f"{timedelta(seconds=round((now - self._began) / timed * remaining))} left"

    def close(self) -> None:
        """Remove the live line."""
        if self._task is not None:
            self._bar.stop()
