"""Keras callbacks that watch a run: metrics and the collapse warning."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.log import log
from swav_tf.recipe.auto import Remedy, remedies
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training.position import Logs, Position
from swav_tf.training.tracking import Tracking


class MetricsLog(keras.callbacks.Callback):
    """Write metrics.jsonl and TensorBoard: one line every `log_every_steps` steps and one every epoch.

    docs/metrics.md explains the fields. The files are opened when training begins, on the chief alone, which has
    this callback; elsewhere `write` and `image` do nothing.
    """

    def __init__(self, folder: RunFolder, recipe: AnyRecipe, position: Position) -> None:
        super().__init__()
        self.folder, self.recipe, self.position = folder, recipe, position
        self._file: TextIO | None = None
        self._board: tf.summary.SummaryWriter | None = None
        self.tracking = Tracking(folder, recipe)
        self._mark = (0.0, 0)  # time and step of the last line

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Open the files and start the clock."""
        if self._file is None:
            self._file = self.folder.metrics.open("a")
            if self.recipe.monitor.tensorboard:
                self._board = tf.summary.create_file_writer(str(self.folder.tensorboard))
                _discard_later_steps(self._board, self.position.step)
            self.tracking.begin()
        self._mark = (time.perf_counter(), self.position.step)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Write the line of a step, and that of an epoch."""
        position = self.position
        pretraining = position.usage.size > 0
        if position.step % self.recipe.monitor.log_every_steps == 0:
            (then, step), self._mark = self._mark, (time.perf_counter(), position.step)
            images = (position.step - step) * self.recipe.train.batch_size
            speed = {"images_per_second": images / max(self._mark[0] - then, 1e-9)}
            used = _prototypes_used(self.model.assignments) if pretraining else {}
            self.write("step", {**logs, **used, **speed})
        if position.at_epoch_end:
            used = _prototypes_used(position.usage) if pretraining else {}
            self.write("epoch", {**position.means(), **used})
            if self._board is not None and pretraining:
                with self._board.as_default(step=position.step):
                    tf.summary.histogram("epoch/samples_of_a_prototype", position.usage)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, and its numbers to TensorBoard under `kind/`."""
        if self._file is None:
            return
        position = self.position
        line = {"kind": kind, "step": position.step, "epoch": position.epoch, **values, "time": time.time()}
        # JSON has no NaN.
        finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        self.tracking.metrics(position.step, kind, values)
        if self._board is not None:
            with self._board.as_default(step=position.step):
                for key, value in values.items():
                    if isinstance(value, (int, float)):
                        tf.summary.scalar(f"{kind}/{key}", value)
            self._board.flush()

    def image(self, name: str, image: np.ndarray) -> None:
        """Write a uint8 image (height, width, 3) to TensorBoard and the trackers."""
        self.tracking.image(self.position.step, name, image)
        if self._board is not None:
            with self._board.as_default(step=self.position.step):
                tf.summary.image(name, image[np.newaxis])

    def close(self) -> None:
        """Close the files."""
        for file in filter(None, (self._file, self._board)):
            file.close()


def _prototypes_used(samples: np.ndarray) -> dict[str, int]:
    return {"prototypes_used": int(np.count_nonzero(samples))}


def _discard_later_steps(board: tf.summary.SummaryWriter, step: int) -> None:
    """Make TensorBoard drop what earlier files contain after this step: a resumed run writes it again."""
    event = tf.compat.v1.Event(
        wall_time=time.time(),
        step=step + 1 if step else 0,  # a run from the start has its crops at step 0
        session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
    )
    with tf.device("CPU:0"):
        # tf.summary has no public function for an event that is not a summary.
        tf.raw_ops.ImportEvent(writer=board._resource, event=event.SerializeToString())


SMOOTHING = 0.98  # of the loss: it averages over about 50 steps
LEAST_SPREAD = 0.01  # of projections: below, they are all but equal
SMOOTHING_STEPS = 50  # a smoothed loss over fewer steps is too noisy to judge
FEWEST_STEPS = 100  # after the freeze: shorter waits would judge a run that has just started


class Collapsed(SwavError):
    """Report a collapse to the caller, which restarts the run with a remedy."""

    def __init__(self, text: str, figures: dict[str, float], remedy: Remedy) -> None:
        super().__init__(text)
        self.figures, self.remedy = figures, remedy


class CollapseWarning(keras.callbacks.Callback):
    """Check once, some time after the prototypes were unfrozen, if the loss is still at ln K or projections are equal.

    `rescue` chooses the remedy with which to start over; without one, or None from it, a collapse is a warning.
    """

    def __init__(
        self,
        recipe: Recipe,
        position: Position,
        rescue: Callable[[list[Remedy]], Remedy | None] | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.position, self.rescue = recipe, position, rescue
        self.ln_k = math.log(recipe.model.prototypes)
        after = min(recipe.monitor.collapse_after_steps, max(FEWEST_STEPS, position.total_steps // 10))
        wait = recipe.frozen_steps(position.steps_per_epoch) + after
        self.check_at = min(wait, position.total_steps)
        self.short = wait > position.total_steps  # too short a run to learn: no reason to start over
        self.least_steps = min(SMOOTHING_STEPS, position.total_steps)
        self.seen = 0
        self.checked = False
        self.smoothed = 0.0
        self.spread = 1.0

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Check the smoothed loss, once."""
        if logs["finite"]:
            self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * logs["loss"]
            self.spread = logs["projection_spread"]
            self.seen += 1
        step = self.position.step
        if self.checked or not self.seen or step < self.check_at or self.seen < self.least_steps:
            return
        self.checked = True
        loss = self.smoothed / (1 - SMOOTHING**self.seen)  # without it the first losses count for too much
        # An untrained model has ln K; 5 % less is more than noise and less than learning.
        if loss > 0.95 * self.ln_k or self.spread < LEAST_SPREAD:
            found = remedies(self.recipe, self.position.steps_per_epoch)
            text = (
                f"The loss (smoothed) is {loss:.3f} after {step} steps, and ln K is {self.ln_k:.3f}: nothing has been "
                f"learned yet (projection spread {self.spread:.3f}; 0 is complete collapse)."
            )
            if self.rescue and not self.short and (remedy := self.rescue(found)):
                figures = {"step": step, "loss": loss, "ln_k": self.ln_k, "projection_spread": self.spread}
                raise Collapsed(text, figures, remedy)
            advice = "\n  ".join(f"{i}. {remedy.text}" for i, remedy in enumerate(found, 1))
            log.warning(f"{text} Remedies, in this order:\n  {advice}")
