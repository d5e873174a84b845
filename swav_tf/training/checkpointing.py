"""Checkpoints of a run: callbacks that write them, at signals too; what may change when a run resumes from one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import keras

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.plumbing.log import leave_closed_terminal, log
from swav_tf.plumbing.names import counted
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import IMPORTED, Checkpoint
from swav_tf.runs.folder import changes
from swav_tf.training.cluster import Topology
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
            is_chief = self.job.team.is_chief
            arrays = capture(self.model, batch_size=self.recipe.train.batch_size, is_chief=is_chief)
            if is_chief:
                facts = {
                    "position": self.position.to_json(),
                    "recipe": self.recipe.model_dump(mode="json"),
                    "images": self.job.images,
                    "contents_sha256": self.job.contents_sha256,
                    "replicas": self.job.team.replicas,
                }
                best = self.position.best_step
                self.job.store.write(self.position.step, arrays, facts, keep=keep, best=best)
        self.last_written = self.position.step
        self.written_at = time.monotonic()

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


# === Resume ===


def check_resumable(checkpoint: Checkpoint, images: Mapping[str, Any], contents_sha256: str) -> None:
    """Check that a checkpoint is of a run on these images. Images of other contents are only reported.

    Raises:
        UsageError: it is an import, or the run was started with other images.
    """
    run_dir = checkpoint.path.parents[1]
    if IMPORTED in checkpoint.facts:
        raise UsageError(
            f"{run_dir} contains imported weights ({checkpoint.facts[IMPORTED]['file']}), not a run to resume. To "
            f"train from them: swav-tf pretrain ... --weights {run_dir} --run-dir NEW."
        )
    before = checkpoint.facts["images"]
    if before != images:
        same_number = before["images"] == images["images"]
        raise UsageError(
            "A run resumes only with the images it was started with: their order and the schedule depend on them. "
            f"It was started with {before['images']:,} images. Received: {images['images']:,}"
            f"{' with other names' if same_number else ''}. Use the original images, another --run-dir, or --fresh "
            "(the old run is kept)."
        )
    before_sha256 = checkpoint.facts.get("contents_sha256", contents_sha256)  # older versions recorded none
    if contents_sha256 and contents_sha256 != before_sha256:
        log.warning(
            "Sizes or modification times of image files have changed since the run was last saved. If pictures were "
            "replaced, training continues on the new ones."
        )


def log_config_changes(
    checkpoint: Checkpoint, model: ReplicatedModel, *, recipe: AnyRecipe, team: Topology
) -> None:
    """Log where a run resumes, and what changed since the checkpoint was written."""
    before, batch_size = checkpoint.facts["recipe"], recipe.train.batch_size
    replicas = checkpoint.facts.get("replicas", team.replicas)
    log.info("Resuming from step %s (%s).", checkpoint.step, checkpoint.path)
    if replicas != team.replicas:
        log.info(
            f"Resuming with {team.replicas} instead of {counted(replicas, 'replica')}: the batch size stays "
            f"{batch_size}, {batch_size // team.replicas} images each."
        )
    if changed := changes(before, recipe, free=True):
        log.info("Settings changed since the checkpoint:\n%s", "\n".join(changed))
    if (earlier := before["train"]["epochs"]) < recipe.train.epochs:
        log.warning(
            f"The run now has {recipe.train.epochs} epochs instead of {earlier}. The learning rate follows the longer "
            f"schedule from step {checkpoint.step} on, so it rises at once; the result differs from that of a run "
            f"started with {recipe.train.epochs} epochs.{_frozen_again(checkpoint, recipe)}"
        )
    then = _batch_norm_images(before, replicas)
    now = _batch_norm_images(recipe.model_dump(mode="json"), team.replicas)
    if model.backbone.trainable and then != now:
        log.warning(
            f"Batch-norm statistics now cover {now} images instead of {then}; results will differ slightly."
        )


def _frozen_again(checkpoint: Checkpoint, recipe: AnyRecipe) -> str:
    """Return a sentence about a freeze that the longer run extends beyond the checkpoint, else nothing."""
    if not isinstance(recipe, Recipe):
        return ""
    frozen = recipe.frozen_steps(checkpoint.facts["images"]["images"] // recipe.train.batch_size)
    return f" The prototypes are frozen until step {frozen}." if checkpoint.step < frozen else ""


def _batch_norm_images(recipe: Mapping[str, Any], replicas: int) -> int:
    """Return the number of images over which batch normalization averages in training mode."""
    train, model = recipe["train"], recipe.get("model")
    images = int(train["batch_size"]) // int(train["accumulation_steps"])
    # Fine-tuning has no such setting and always synchronizes.
    if model and not model["batch_norm"]["synchronised"]:
        return images // replicas
    return images
