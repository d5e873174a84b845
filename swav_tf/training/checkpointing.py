"""When checkpoints are written: in time, at signals, at the end; and when a run must stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import keras

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.files import AnyRecipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.position import Position
from swav_tf.training.state import capture

STOP, WRITE = 0, 1  # places in ReplicatedModel.wishes


class StoppedBySignal(SwavError):
    """The run stopped because it was asked to; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name if number else "a signal to another worker"
        super().__init__(
            f"Stopped by {name} after step {step}; a checkpoint is written. The same command goes on from there."
        )
        # A worker that stops because another was signalled is preempted like that one: schedulers start both again.
        self.exit_code = 128 + (number or signal.SIGTERM)


class Diverged(SwavError):
    """Loss or gradients stayed non-finite."""


class Checkpointing(keras.callbacks.Callback):
    """Writes a checkpoint every so many minutes, at kept epochs, at signals and at the end.

    SIGTERM and SIGINT stop the run after the step, SIGUSR1 does not. A signal to any worker counts:
    the wish travels with the step's own sums, so all workers write the same step.
    """

    model: ReplicatedModel

    def __init__(
        self,
        store: CheckpointStore,
        recipe: AnyRecipe,
        position: Position,
        *,
        images: Mapping[str, Any],
        is_chief: bool,
    ) -> None:
        """`images` tells the training images from others, as `swav_tf.data.sources.fingerprint` does."""
        super().__init__()
        self.images = images
        self.store, self.recipe, self.position, self.is_chief = store, recipe, position, is_chief
        self.written_at = time.monotonic()
        self.last_written: int | None = None
        self.signal_number = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Wishes for a checkpoint when the time has come."""
        overdue = time.monotonic() - self.written_at > 60 * self.recipe.checkpoint.every_minutes
        if self.is_chief and overdue:
            self.model.wishes[WRITE] = 1

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Writes if any worker wished it, or an epoch that is kept is over."""
        position, every = self.position, self.recipe.checkpoint.keep_every_epochs
        stop, wanted = self.model.agreed
        keep = bool(every) and position.at_epoch_end and (position.epoch + 1) % every == 0
        if stop or wanted or keep or position.step == position.total_steps:
            self.write(keep=keep)
        if stop:
            raise StoppedBySignal(self.signal_number, position.step)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Writes if a callback ended the run before its last step."""
        if self.last_written != self.position.step:
            self.write()

    def write(self, *, keep: bool = False) -> None:
        """Writes now. All workers must come here at the same step."""
        self.model.wishes[WRITE] = 0
        arrays = capture(self.model, batch_size=self.recipe.train.batch_size)
        if self.is_chief:
            facts = {
                "position": self.position.to_json(),
                "recipe": self.recipe.model_dump(mode="json"),
                "images": dict(self.images),
                "replicas": self.model.distribute_strategy.num_replicas_in_sync,
            }
            self.store.write(self.position.step, arrays, facts, keep=keep)
        self.last_written = self.position.step
        self.written_at = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals become wishes inside; the caller's handlers come back after."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return

        def stop(number: int, frame: FrameType | None) -> None:
            # Ctrl-C twice means now. Schedulers may send SIGTERM twice and mean the same as once.
            if number == signal.SIGINT and self.signal_number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal_number = number
            self.model.wishes[STOP] = 1

        def write(number: int, frame: FrameType | None) -> None:
            self.model.wishes[WRITE] = 1

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: write}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a run whose loss or gradients stay non-finite; such steps change no weight."""

    def __init__(self, recipe: AnyRecipe, position: Position, checkpointing: Checkpointing) -> None:
        super().__init__()
        self.limit = recipe.train.max_non_finite_steps
        self.precision = recipe.train.precision
        self.position, self.checkpointing = position, checkpointing
        self.in_a_row = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Counts non-finite steps in a row."""
        self.in_a_row = 0 if (logs or {})["finite"] else self.in_a_row + 1
        if self.in_a_row >= self.limit:
            steps = self.checkpointing.store.steps()
            good = self.checkpointing.store.path(steps[-1]) if steps else "none was written yet"
            raise Diverged(
                f"Loss or gradients were not finite in {self.in_a_row} steps in a row, up to step "
                f"{self.position.step} (precision {self.precision}, loss scale {(logs or {})['loss_scale']:g}). "
                f"Last good checkpoint: {good}.\nRemedies in order: a lower learning rate in optimizer, a longer "
                "warm-up where there is one, train.precision=float32 or mixed_bfloat16, each with another --run-dir; "
                "look for broken images with `swav-tf crops`."
            )
