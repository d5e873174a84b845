"""The progress bar on a terminal; elsewhere a line now and then."""

from __future__ import annotations

import math
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from swav_tf.recipe_files import AnyRecipe
from swav_tf.training.callbacks.position import Position


class ShowProgress(keras.callbacks.Callback):
    """Epoch, step, loss beside that of a model that knows nothing, learning rate, images/s, time that is left.

    Args:
        recipe: of the run.
        position: where it stands.
        console: where to; a line at least every `line_seconds` where it is no terminal.
        ignorance: name and value of the loss of a model that knows nothing.
        line_seconds: longest time between two lines.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        position: Position,
        console: Console,
        *,
        ignorance: tuple[str, float],
        line_seconds: float = 10.0,
    ) -> None:
        super().__init__()
        self.recipe, self.position, self.console = recipe, position, console
        self.line_seconds = line_seconds
        self.ignorance = f"{ignorance[0]} {ignorance[1]:.3f}"
        self.loss: float | None = None  # smoothed
        self._began = self._spoke = time.perf_counter()
        self._first_step = position.step
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]} ({task.fields[ignorance]})  lr {task.fields[lr]}  "
                "{task.fields[speed]} images/s"
            ),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock at the second step: the first one traces the graph."""
        if self.position.step == self._first_step + 1:
            self._began = time.perf_counter()
        if self._task is None and self.console.is_terminal:
            fields: dict[str, Any] = self._fields({})
            self._task = self._bar.add_task(
                "", total=self.position.total_steps, completed=self.position.step, **fields
            )
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Shows the step."""
        position, logs = self.position, logs or {}
        if logs["finite"]:
            self.loss = logs["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * logs["loss"]
        fields: dict[str, Any] = self._fields(logs)
        if self._task is not None:
            self._bar.update(self._task, completed=position.step, **fields)
            return
        now = time.perf_counter()
        if now - self._spoke < self.line_seconds and position.step != position.total_steps:
            return
        self._spoke = now
        done = position.step - self._first_step - 1
        left = (now - self._began) / done * (position.total_steps - position.step) if done > 0 else math.nan
        self.console.print(
            f"epoch {fields['epoch']}/{fields['epochs']}  step {position.step}/{position.total_steps}  "
            f"loss {fields['loss']} ({fields['ignorance']})  lr {fields['lr']}  {fields['speed']} images/s  "
            f"{_clock(left)} left",
            highlight=False,
        )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()

    def _fields(self, logs: dict[str, float]) -> dict[str, str]:
        position = self.position
        done = position.step - self._first_step - 1
        speed = done * self.recipe.train.batch_size / max(time.perf_counter() - self._began, 1e-9)
        return {
            "epoch": str(position.epoch + 1),
            "epochs": str(self.recipe.train.epochs),
            "loss": "-" if self.loss is None else f"{self.loss:.3f}",
            "ignorance": self.ignorance,
            "lr": f"{logs.get('learning_rate', 0.0):.4g}",
            "speed": f"{speed:.0f}" if done > 0 else "-",
        }


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
