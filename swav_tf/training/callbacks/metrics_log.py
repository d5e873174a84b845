"""metrics.jsonl and TensorBoard: the same figures, for programs and for eyes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from swav_tf.recipe_files import AnyRecipe
from swav_tf.training.callbacks.position import Position
from swav_tf.training.run_folder import RunFolder


class MetricsLog(keras.callbacks.Callback):
    """One line every `log_every_steps` steps and one every epoch; docs/metrics.md explains the fields."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: AnyRecipe,
        position: Position,
        *,
        beside: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """`beside` gives what a step's line has beside the step's measures."""
        super().__init__()
        self.folder, self.recipe, self.position, self.beside = folder, recipe, position, beside
        self._file: TextIO | None = None
        self._board: tf.summary.SummaryWriter | None = None
        self._mark = (time.perf_counter(), position.step)

    def open(self) -> None:
        """Opens the files, where `RunFolder.keep_metrics_until` has cut metrics.jsonl back."""
        self._file = self.folder.metrics.open("a")
        if self.recipe.monitor.tensorboard:
            self._board = tf.summary.create_file_writer(str(self.folder.tensorboard))
            _forget_later_steps(self._board, self.position.step)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._mark = (time.perf_counter(), self.position.step)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Writes a step's line, and an epoch's."""
        position, logs = self.position, logs or {}
        if position.step % self.recipe.monitor.log_every_steps == 0:
            self.write("step", {**logs, **self.beside(), **self._speed()})
        if position.at_epoch_end:
            used = {"prototypes_used": int(np.count_nonzero(position.usage))} if position.usage.size else {}
            self.write("epoch", {**position.means(), **used})
            self._histogram()

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers in TensorBoard under `kind/`."""
        position = self.position
        line = {"kind": kind, "step": position.step, "epoch": position.epoch, **values, "time": time.time()}
        assert self._file is not None
        # JSON has no NaN; a figure that is none is null.
        finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            with self._board.as_default(step=position.step):
                for key, value in values.items():
                    if isinstance(value, (int, float)):
                        tf.summary.scalar(f"{kind}/{key}", value)
            self._board.flush()

    def image(self, name: str, image: np.ndarray) -> None:
        """A uint8 picture (height, width, 3) in TensorBoard."""
        if self._board is not None:
            with self._board.as_default(step=self.position.step):
                tf.summary.image(name, image[np.newaxis])

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _speed(self) -> dict[str, float]:
        now, (then, step) = time.perf_counter(), self._mark
        self._mark = (now, self.position.step)
        images = (self.position.step - step) * self.recipe.train.batch_size
        return {"images_per_second": images / max(now - then, 1e-9)}

    def _histogram(self) -> None:
        if self._board is not None and self.position.usage.size:
            with self._board.as_default(step=self.position.step):
                tf.summary.histogram("epoch/samples_of_a_prototype", self.position.usage)


def _forget_later_steps(board: tf.summary.SummaryWriter, step: int) -> None:
    """Has TensorBoard drop what earlier files have after this step: a run that was killed writes it again."""
    event = tf.compat.v1.Event(
        wall_time=time.time(),
        step=step + 1 if step else 0,  # from this step on; a run from the start has its picture at step 0
        session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
    )
    with tf.device("CPU:0"):
        # tf.summary has no public way to write an event that is no summary.
        tf.raw_ops.ImportEvent(writer=board._resource, event=event.SerializeToString())
