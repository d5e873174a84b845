"""What every training job does round its own model: go on from a checkpoint, fit, explain what ended it."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.markup import escape

from swav_tf.data.bad_images import BadImages
from swav_tf.data.loader import ended_after
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Data, Train
from swav_tf.runs.checkpoint import IMPORTED, Checkpoint, CheckpointStore
from swav_tf.runs.folder import RunFolder, changes
from swav_tf.training.cluster import Topology, batches_on_devices, mean_over_workers, topology
from swav_tf.training.position import Position
from swav_tf.training.state import restore
from swav_tf.training.watched import COLLECTIVE_ERRORS, WorkerEnded


@contextmanager
def run_folder(
    path: Path,
    recipe: AnyRecipe,
    *,
    fresh: bool,
    strategy: tf.distribute.Strategy,
    console: Console,
    warnings: Console,
) -> Iterator[RunFolder]:
    """The run's folder, made ready by the chief before any other worker looks into it.

    Raises:
        UsageError: a live process writes it, or it holds a run of another kind or with other settings.
        WorkerEnded: that is so on the chief.
    """
    team = topology(strategy)
    folder, failure = RunFolder(path, writer=team.is_chief), None
    with ExitStack() as stack:
        if team.is_chief:
            try:
                stack.enter_context(folder)
                folder.check_kind(recipe)
                if fresh and (aside := folder.set_aside()):
                    console.print(f"the earlier run is kept in {aside}")
                if mended := folder.save_recipe(recipe):
                    warnings.print(f"[yellow]warning[/] {escape(mended)}")
            except SwavError as error:
                failure = error
        if (
            team.workers > 1
            and any(mean_over_workers(strategy, [float(failure is not None)]))
            and failure is None
        ):
            raise WorkerEnded
        if failure is not None:
            raise failure
        if not team.is_chief:
            folder.save_recipe(recipe)
        yield folder


def resume(
    model: ReplicatedModel,
    store: CheckpointStore,
    position: Position,
    *,
    recipe: AnyRecipe,
    images: Mapping[str, Any],
    team: Topology,
    console: Console,
    warnings: Console,
) -> int | None:
    """Puts the newest whole checkpoint into the model; returns its step, or None if there is none.

    Its settings are those of `recipe`, which `RunFolder.save_recipe` has seen to.

    Raises:
        UsageError: the checkpoint is of other images.
        CheckpointError: no checkpoint is whole, or it does not fit the model.
        UsageError: the folder holds imported weights, which were never trained here.
        SwavError: the workers do not see the same checkpoint.
    """
    checkpoint, complaints = store.newest()
    for complaint in complaints:
        warnings.print(f"[yellow]warning[/] {complaint} The one before it is used.")
    if checkpoint is not None:
        if IMPORTED in checkpoint.facts:
            raise UsageError(
                f"{store.folder.parent} holds imported weights ({checkpoint.facts[IMPORTED]['file']}) and no run that "
                "could be gone on with. To begin a new run with them: swav-tf pretrain ... "
                f"--weights {store.folder.parent} --run-dir NEW."
            )
        before = checkpoint.facts["images"]
        if before != images:
            raise UsageError(
                "A run goes on only with the images it was started with: their order and the schedule follow from "
                f"them. It began with {before['images']:,} images, now there are {images['images']:,}"
                f"{', of other names' if before['images'] == images['images'] else ''}. "
                "Give the old images, another --run-dir, or --fresh (the old run is kept aside)."
            )
        restore(model, checkpoint.arrays, batch_size=recipe.train.batch_size)
        position.from_json(checkpoint.facts["position"])
        tell_what_changed(checkpoint, model, recipe=recipe, team=team, console=console, warnings=warnings)
    if team.workers > 1:
        _check_all_at(position.step, model)
    return checkpoint.step if checkpoint else None


def tell_what_changed(
    checkpoint: Checkpoint,
    model: ReplicatedModel,
    *,
    recipe: AnyRecipe,
    team: Topology,
    console: Console,
    warnings: Console,
) -> None:
    """Says from where a run goes on, and what is no longer as it was when the checkpoint was written."""
    before, batch_size = checkpoint.facts["recipe"], recipe.train.batch_size
    replicas = checkpoint.facts.get("replicas", team.replicas)
    moved = (
        f"; {replicas} replica(s) then, {team.replicas} now: the same batch of {batch_size}, "
        f"{batch_size // team.replicas} images each"
    )
    console.print(
        f"going on from step {checkpoint.step} ({checkpoint.path}){moved if replicas != team.replicas else ''}"
    )
    if changed := changes(before, recipe, free=True):
        console.print(escape("settings that are others now:\n" + "\n".join(changed)))
    then = _images_of_a_statistic(before, replicas)
    now = _images_of_a_statistic(recipe.model_dump(mode="json"), team.replicas)
    if model.backbone.trainable and then != now:
        warnings.print(
            f"[yellow]warning[/] batch normalisation took its statistics over {then} images at once, and takes them "
            f"over {now} from here on: the run will not end quite as it would have."
        )


def _images_of_a_statistic(recipe: Mapping[str, Any], replicas: int) -> int:
    """Images over which batch normalisation in training mode takes a mean and a variance."""
    train, model = recipe["train"], recipe.get("model")
    images = int(train["batch_size"]) // int(train["accumulation_steps"])
    # Fine-tuning has no such settings: there it is over all replicas. A network of KerasCV's never is.
    if model and not (model["batch_norm"]["synchronised"] and model["backbone"]["library"] == "swav_tf"):
        return images // replicas
    return images


def _check_all_at(step: int, model: ReplicatedModel) -> None:
    """All workers must have found the same checkpoint, or they would train apart."""
    [mean] = mean_over_workers(model.distribute_strategy, [float(step)])
    if mean != step:
        raise SwavError(
            f"All workers must see the same run folder. Received: this worker's checkpoint is of step {step}, "
            f"the mean over workers is {mean:g}. Put --run-dir on a shared file system."
        )


def fit(
    model: ReplicatedModel,
    position: Position,
    batches_from: Callable[[int], tf.data.Dataset],
    *,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Trains from the position to the end, or until a callback sets `stop_training`.

    Args:
        model: compiled, under its strategy.
        position: where the run stands; a callback moves it on.
        batches_from: this worker's batches from a step (from 0) to the end of the run.
        epochs: of the whole run.
        callbacks: for Keras.
    """
    strategy = model.distribute_strategy
    while position.step < position.total_steps:
        epoch, done = divmod(position.step, position.steps_per_epoch)
        with ended_after():
            batches = batches_on_devices(strategy, lambda: batches_from(position.step))
            model.fit(
                batches,
                initial_epoch=epoch,
                # A run that goes on in the middle of an epoch ends that one first.
                epochs=epoch + 1 if done else epochs,
                steps_per_epoch=position.steps_per_epoch - done,
                callbacks=list(callbacks),
                shuffle=False,  # the batches come in their order
                verbose=0,
            )
        model.batches_in_use = None
        if model.stop_training:  # a callback of the caller's
            break


@contextmanager
def failures_explained(train: Train, replicas: int, bad_images: BadImages) -> Iterator[None]:
    """TensorFlow's errors in words: out of memory, and images that cannot be read.

    Raises:
        SwavError: instead of them; what has no words stays as it is.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise SwavError(
            f"Out of memory at batch_size {train.batch_size} over {replicas} replica(s). "
            "Remedies: train.accumulation_steps=2 (or 4, 8: the same batch in parts), "
            "train.precision=mixed_float16, a smaller train.batch_size (in pretraining with a queue). "
            f"TensorFlow says: {str(error)[:300]}"
        ) from error
    except COLLECTIVE_ERRORS as error:
        if replicas == 1:
            raise
        raise WorkerEnded from error
    except tf.errors.OpError as error:
        if bad_images.fatal is not None:
            raise bad_images.fatal from None
        # What a tf.data function raises arrives as TensorFlow's error, its message inside a stack trace.
        if meant := re.search(r"DataError: (.+)", str(error)):
            raise DataError(meant[1]) from None
        raise


def how_it_trains(train: Train, team: Topology, steps_per_epoch: int) -> str:
    """Two lines of a job's banner: who computes, in what steps, with which versions."""
    parts = f" in {train.accumulation_steps} parts" if train.accumulation_steps > 1 else ""
    return (
        f"{team.kind}: {team.workers} worker(s), {team.replicas} replica(s) on {team.devices}, global batch "
        f"{train.batch_size}{parts}, {steps_per_epoch} steps an epoch, {train.epochs} epochs, {train.precision}\n"
        + ", ".join(f"{name} {version}" for name, version in versions().items())
    )


def versions() -> dict[str, str]:
    """Of Python, TensorFlow and Keras."""
    return {
        "python": platform.python_version(),
        "tensorflow": str(tf.__version__),
        "keras": str(keras.__version__),
    }


def consoles(team: Topology, *, quiet: bool) -> tuple[Console, Console]:
    """For progress, and for warnings, which are told in any case; only the chief speaks."""
    progress, warnings = (
        Console(stderr=True, quiet=silent or not team.is_chief, highlight=False, soft_wrap=True)
        for silent in (quiet, False)
    )
    return progress, warnings


def bad_images_of(run_dir: Path, team: Topology, data: Data, *, images: int) -> BadImages:
    """This worker's tally, listed in a file of its own below the run folder.

    Args:
        run_dir: folder of the run.
        team: says which worker this is.
        data: says what share is allowed.
        images: of the whole source.
    """
    name = "bad_images.txt" if team.is_chief else f"bad_images.worker{team.worker}.txt"
    return BadImages(run_dir / name, images=images, max_share=data.max_bad_share)
