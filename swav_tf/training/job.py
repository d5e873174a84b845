"""One training job: what pretraining, probes and fine-tuning share.

with open_job(recipe, run_dir, cluster) as job:  # strategy, heartbeat, log level, explained failures
    job.open(source, fresh=fresh)                # same settings on all workers, folder and lock
    model = job.build(make)                      # under the strategy; resumed or new
    job.fit(model, callbacks, ...)               # metrics, progress, checkpoints, signals
    job.finish(model, ...)                       # summary.json
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import keras
import tensorflow as tf

from swav_tf.data.bad_images import BadImages
from swav_tf.data.image_source import ImageSource
from swav_tf.data.loader import ended_after, training_batches
from swav_tf.data.sources import contents_sha256, fingerprint, recognized
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import counted
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.folder import RunFolder
from swav_tf.training.callbacks import MetricsLog
from swav_tf.training.checkpointing import (
    Checkpointing,
    StopWhenDiverged,
    check_resumable,
    log_config_changes,
)
from swav_tf.training.cluster import (
    Topology,
    batches_on_devices,
    build_strategy,
    check_workers_consistent,
    mean_over_workers,
    topology,
)
from swav_tf.training.failures import WorkerEnded, explained_failures, watched
from swav_tf.training.position import Position, UpdatePosition
from swav_tf.training.progress import ShowProgress
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.state import restore
from swav_tf.training.tracking import check_installed

ModelT = TypeVar("ModelT", bound=ReplicatedModel)
_SILENT = logging.CRITICAL + 1
VERSIONS = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}


@dataclass(frozen=True)
class Result(Generic[ModelT]):
    """A completed run: the trained model and the content of summary.json."""

    model: ModelT
    run_dir: Path
    summary: dict[str, Any]
    is_chief: bool  # this process wrote the folder


@contextmanager
def open_job(
    recipe: AnyRecipe,
    run_dir: Path | str,
    cluster: ClusterAddress | None = None,
    *,
    quiet: bool = False,
    one_device: bool = False,
) -> Iterator[Job]:
    """Connect the workers for a training job, and explain its failures.

    With `quiet` there is no progress and only warnings are logged. `one_device` overrides the recipe's strategy.
    """
    started, level = time.perf_counter(), log.level
    train = recipe.train.model_copy(update={"strategy": "one_device"}) if one_device else recipe.train
    try:
        if quiet:
            log.setLevel(logging.WARNING)
        strategy, meeting = build_strategy(train, cluster)
        team = topology(strategy)
        if not team.is_chief:
            log.setLevel(_SILENT)
        with (
            watched(meeting, train.worker_timeout_seconds),
            explained_failures(train, team),
            ExitStack() as stack,
        ):
            recipe = recipe.model_copy(update={"data": recognized(recipe.data)})
            yield Job(recipe, Path(run_dir), strategy, team, started, quiet, stack)
    finally:
        log.setLevel(level)


@dataclass
class Job:
    """A training run: its workers, images, folder, position and checkpoints.

    All workers call the methods together, in the order `open`, `build`, `fit`, `finish`.
    """

    recipe: AnyRecipe
    run_dir: Path
    strategy: tf.distribute.Strategy
    team: Topology
    started: float
    quiet: bool
    stack: ExitStack  # unlocks the folder at the end
    # Set by `open`.
    source: ImageSource = field(init=False)
    images: dict[str, Any] = field(init=False)  # fingerprint of the training images
    contents_sha256: str = field(init=False)  # of them; only the chief computes it
    position: Position = field(init=False)
    folder: RunFolder = field(init=False)
    store: CheckpointStore = field(init=False)
    bad_images: BadImages = field(init=False)
    metrics: MetricsLog = field(init=False)
    # Set by `build`.
    resumed_from: int | None = None

    def open(self, source: ImageSource, *, fresh: bool, in_steps: bool = True, **consistent: Any) -> None:
        """Check the recipe with these images on all workers, then lock and prepare the run folder.

        Args:
            source: the training images.
            fresh: move an earlier run in the folder aside.
            in_steps: the run trains in batches of the recipe's size.
            **consistent: further JSON values that must be equal on all workers.

        Raises:
            RecipeError: settings do not work with these images and devices.
            UsageError: workers differ, or the folder is in use or contains another run.
        """
        recipe, team = self.recipe, self.team
        images, on_cpu = len(source) if in_steps else None, team.devices == "CPU"
        for remark in check_recipe(recipe, replicas=team.replicas, images=images, on_cpu=on_cpu):
            log.warning("%s", remark)
        self.source, self.images = source, fingerprint(source)
        self.contents_sha256 = contents_sha256(source) if team.is_chief else ""
        steps = len(source) // recipe.train.batch_size
        self.position = Position(steps, recipe.train.epochs * steps)
        check_workers_consistent(self.strategy, team, recipe, images=self.images, **consistent)
        if team.is_chief:
            check_installed(recipe.monitor.track)
        self.folder = RunFolder(self.run_dir, writer=team.is_chief)
        self._begin_folder(fresh=fresh)
        keep_last = recipe.checkpoint.keep_last
        self.store = CheckpointStore(self.folder.checkpoints, kind=recipe.kind, keep_last=keep_last)
        name = "bad_images.txt" if team.is_chief else f"bad_images.worker{team.worker}.txt"
        max_share = recipe.data.max_bad_share
        self.bad_images = BadImages(self.run_dir / name, images=len(source), max_share=max_share)
        self.metrics = MetricsLog(self.folder, recipe, self.position)
        self.stack.push(lambda kind, error, trace: self.metrics.tracking.close(complete=kind is None))

    def _begin_folder(self, *, fresh: bool) -> None:
        """Let the chief prepare the folder before the other workers read it; its failure ends all of them."""
        team, failure = self.team, None
        if team.is_chief:
            try:
                self.stack.enter_context(self.folder)
                self.folder.begin(self.recipe, fresh=fresh)
            except SwavError as error:
                failure = error
        failed = float(failure is not None)
        if team.workers > 1:
            [failed] = mean_over_workers(self.strategy, [failed])
        if failed:
            raise failure or WorkerEnded
        if not team.is_chief:
            self.folder.begin(self.recipe)

    def build(self, make: Callable[[], ModelT]) -> ModelT:
        """Make a model under the strategy, and restore the newest checkpoint if there is one.

        Raises:
            UsageError: the checkpoint is an import, or of a run on other images.
            CheckpointError: all checkpoints are damaged, or the newest does not fit the model.
        """
        with self.strategy.scope():
            model = make()
        checkpoint, problems = self.store.newest()
        for problem in problems:
            log.warning("%s Using the previous one.", problem)
        if checkpoint is not None:
            check_resumable(checkpoint, self.images, self.contents_sha256)
            restore(model, checkpoint.arrays, batch_size=self.recipe.train.batch_size)
            self.position.from_json(checkpoint.facts["position"])
            log_config_changes(checkpoint, model, recipe=self.recipe, team=self.team)
            self.resumed_from = checkpoint.step
        if self.team.workers > 1:
            self._check_same_step()
        return model

    def start(self) -> None:
        """Write the recipe into the run folder: nothing can be refused any longer."""
        self.folder.start(self.recipe, step=self.position.step, at_end=self.position.at_end)

    def _check_same_step(self) -> None:
        """Check that all workers found the same checkpoint: else they would train apart."""
        step = self.position.step
        [mean] = mean_over_workers(self.strategy, [float(step)])
        if mean != step:
            raise SwavError(
                f"All workers must see the same run folder. Received: this worker's checkpoint is of step {step}, "
                f"the mean over workers is {mean:g}. Put --run-dir on a shared file system."
            )

    def fit(
        self,
        model: ReplicatedModel,
        callbacks: Sequence[keras.callbacks.Callback],
        *,
        averaged: Sequence[str],
        chance: tuple[str, float],
    ) -> None:
        """Train from the current position to the end, or until a callback sets `stop_training`.

        Args:
            model: compiled.
            callbacks: called after the position is updated and before a checkpoint is written.
            averaged: step metrics to average over an epoch.
            chance: name and value of the loss of an untrained model.
        """
        log.info(self._description())
        progress = ShowProgress(self.recipe, self.position, chance=chance)
        checkpointing = Checkpointing(self)
        checkpointing.set_model(model)
        watching = [UpdatePosition(self.position, averaged)]
        if self.team.is_chief:
            watching += [self.metrics] if self.quiet else [self.metrics, progress]
        watching += [*callbacks, StopWhenDiverged(self), checkpointing]
        try:
            with checkpointing.handling_signals():
                self._fit_epochs(model, watching)
        finally:
            progress.close()
            self.metrics.close()

    def _fit_epochs(self, model: ReplicatedModel, callbacks: list[keras.callbacks.Callback]) -> None:
        position = self.position
        while not position.at_end:
            epoch, done = divmod(position.step, position.steps_per_epoch)
            with ended_after():
                model.fit(
                    batches_on_devices(self.strategy, self._batches),
                    initial_epoch=epoch,
                    # A run that resumes in the middle of an epoch completes that one first.
                    epochs=epoch + 1 if done else self.recipe.train.epochs,
                    steps_per_epoch=position.steps_per_epoch - done,
                    callbacks=callbacks,
                    shuffle=False,  # the order of the batches is given
                    verbose=0,
                )
            model.batches_in_use = None
            if model.stop_training:  # set by a callback
                break

    def _batches(self) -> tf.data.Dataset:
        """Return this worker's batches from the current step to the end of the run."""
        team, position = self.team, self.position
        return training_batches(
            self.recipe,
            self.source,
            steps_per_epoch=position.steps_per_epoch,
            start_step=position.step,
            total_steps=position.total_steps,
            workers=team.workers,
            worker=team.worker,
            replica_batch_size=self.replica_batch_size,
            bad_images=self.bad_images,
            labeled=not isinstance(self.recipe, Recipe),
        )

    @property
    def replica_batch_size(self) -> int:
        """Return the number of images that a replica sees at once."""
        train = self.recipe.train
        return train.batch_size // self.team.replicas // train.accumulation_steps

    def complete(self, model: ModelT) -> Result[ModelT] | None:
        """Return the result of a run that had ended before, None if there is something to do."""
        if not self.position.at_end or not (summary := self.folder.read_summary()):
            return None
        log.info("This run is complete: %s", self.folder.path / "summary.json")
        return Result(model, self.run_dir, summary, self.team.is_chief)

    def finish(self, model: ModelT, **figures: Any) -> Result[ModelT]:
        """Write the summary of a training and return what the job returns."""
        return self.end(
            model,
            **figures,
            epochs=self.recipe.train.epochs,
            steps=self.position.step,
            bad_images=self.bad_images.count,
            replicas=self.team.replicas,
            resumed_from_step=self.resumed_from,
        )

    def end(self, model: ModelT, **figures: Any) -> Result[ModelT]:
        """Write summary.json, these figures, time and versions, and return what the job returns."""
        summary = {
            "recipe": self.recipe.name,
            **figures,
            "seconds": round(time.perf_counter() - self.started, 2),
            "versions": VERSIONS,
        }
        self.folder.write_summary(summary)
        if self.team.is_chief:
            self.metrics.tracking.begin()  # without steps, as in a cached probe, nothing has started it
            self.metrics.tracking.summary(summary)
        return Result(model, self.run_dir, summary, self.team.is_chief)

    def _description(self) -> str:
        train, team = self.recipe.train, self.team
        parts = f" in {train.accumulation_steps} parts" if train.accumulation_steps > 1 else ""
        return (
            f"{team.kind}: {counted(team.workers, 'worker')}, {counted(team.replicas, 'replica')} on {team.devices}, "
            f"global batch {train.batch_size}{parts}, {counted(self.position.steps_per_epoch, 'step')} per epoch, "
            f"{counted(train.epochs, 'epoch')}, {train.precision}\n"
            + ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
        )
