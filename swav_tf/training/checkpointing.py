"""Keras callbacks that write checkpoints, and that end a run at a signal or when it diverges."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import keras

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.log import leave_closed_terminal
from swav_tf.training.position import Logs
from swav_tf.training.state import capture
from swav_tf.training.stopping import stop_signals

if TYPE_CHECKING:
    from swav_tf.training.job import Job

STOP, WRITE = 0, 1  # indices of ReplicatedModel.requests


class StoppedBySignal(SwavError):
    """Report that a signal stopped the run after a checkpoint."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name if number else "a signal to another worker"
        super().__init__(
            f"Stopped by {name} after step {step}; a checkpoint was written. The same command resumes from there."
        )
        # The signal of another worker counts as this one's: then a scheduler restarts both.
        self.exit_code = 128 + (number or signal.SIGTERM)


class Diverged(SwavError):
    """Report that loss or gradients stayed non-finite."""


class Checkpointing(keras.callbacks.Callback):
    """Write a checkpoint every few minutes, at epochs to keep, at the best one, at signals and at the end.

    SIGTERM, SIGINT and SIGHUP stop the run after the current step, SIGUSR1 only writes a checkpoint. A signal to any
    worker counts: the request is summed with the step's gradients, so all workers act at the same step.
    """

    model: ReplicatedModel

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.recipe, self.position = job, job.recipe, job.position
        self.written_at = time.monotonic()
        self.last_written: int | None = None
        self.signal_number = 0

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Request a checkpoint when the time has come."""
        overdue = time.monotonic() - self.written_at > 60 * self.recipe.checkpoint.every_minutes
        if self.job.team.is_chief and overdue:
            self.model.requests[WRITE] = 1

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Write if a worker requested it, or at the end of an epoch to keep or of the best one."""
        position, every = self.position, self.recipe.checkpoint.keep_every_epochs
        stop, requested = self.model.agreed
        keep = bool(every) and position.at_epoch_end and (position.epoch + 1) % every == 0
        if stop or requested or keep or position.at_end or position.best_step == position.step:
            self.write(keep=keep)
        if stop:
            raise StoppedBySignal(self.signal_number, position.step)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Write if a callback ended the run before its last step."""
        if self.last_written != self.position.step:
            self.write()

    def write(self, *, keep: bool = False) -> None:
        """Write now. All workers must call this at the same step."""
        self.model.requests[WRITE] = 0
        with self.position.doing("checkpoint"):
            self._write(keep=keep)
        self.last_written = self.position.step
        self.written_at = time.monotonic()

    def _write(self, *, keep: bool) -> None:
        arrays = capture(self.model, batch_size=self.recipe.train.batch_size)
        if self.job.team.is_chief:
            facts = {
                "position": self.position.to_json(),
                "recipe": self.recipe.model_dump(mode="json"),
                "images": self.job.images,
                "contents_sha256": self.job.contents_sha256,
                "replicas": self.job.team.replicas,
            }
            self.job.store.write(self.position.step, arrays, facts, keep=keep, best=self.position.best_step)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turn signals into requests; the previous handlers return afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return

        def stop(number: int, frame: FrameType | None) -> None:
            # A second Ctrl-C means at once. A second SIGTERM means nothing: schedulers may send several.
            if number == signal.SIGINT and self.signal_number == signal.SIGINT:
                raise KeyboardInterrupt
            leave_closed_terminal()
            self.signal_number = number
            self.model.requests[STOP] = 1

        def write(number: int, frame: FrameType | None) -> None:
            self.model.requests[WRITE] = 1

        handlers = {number: stop for number in stop_signals()} | {signal.SIGUSR1: write}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class StopWhenDiverged(keras.callbacks.Callback):
    """End a run whose loss or gradients stay non-finite; such steps change no weight."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.in_a_row = job, 0

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Count non-finite steps in a row."""
        train, store = self.job.recipe.train, self.job.store
        self.in_a_row = 0 if logs["finite"] else self.in_a_row + 1
        if self.in_a_row >= train.max_non_finite_steps:
            steps = store.steps()
            raise Diverged(
                f"Loss or gradients were not finite in {self.in_a_row} steps in a row, up to step "
                f"{self.job.position.step} (precision {train.precision}, loss scale {logs['loss_scale']:g}). Last good "
                f"checkpoint: {store.path(steps[-1]) if steps else 'none'}.\nRemedies, in this order: a lower "
                "learning rate in optimizer, a longer warm-up, train.precision=float32 or mixed_bfloat16, each with "
                "another --run-dir; look for broken images with `swav-tf crops`."
            )
