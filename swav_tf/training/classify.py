"""The job that probes and fine-tuning share: build, restore, fit, validate, save."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.data.labels import LabelledData, open_labelled
from swav_tf.data.loader import training_batches
from swav_tf.data.sources import fingerprint
from swav_tf.method.optimizers import SGD, EpochSchedule, epoch_shares
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.model_facts import BY_SGD, ModelFacts, save_facts
from swav_tf.training.callbacks import MetricsLog, ShowProgress
from swav_tf.training.checkpointing import Checkpointing, StopWhenDiverged
from swav_tf.training.classifier import Classifier
from swav_tf.training.classifier_folder import (
    Start,
    build_classifier,
    put_weights,
    start_from,
    write_results,
)
from swav_tf.training.cluster import Topology, build_strategy, check_alike, topology
from swav_tf.training.job import (
    bad_images_of,
    consoles,
    failures_explained,
    fit,
    how_it_trains,
    resume,
    run_folder,
    versions,
)
from swav_tf.training.position import CountSteps, Position
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.validation import Validate, Validation
from swav_tf.training.watched import watched

MEANS_OF = ("loss", "top1", "gradient_norm")
LARGEST_VALIDATION_BATCH = 256  # of a replica


@dataclass(frozen=True)
class ClassifierResult:
    """A run that has ended: the trained model and the figures of summary.json."""

    model: Classifier
    run_dir: Path
    summary: dict[str, Any]


class RunOptions(TypedDict):
    """What a probe and fine-tuning are told beside their recipe.

    Attributes:
        model: run folder of the pretraining; with `from_scratch` a recipe will do.
        run_dir: folder of this run; with a checkpoint in it, the run goes on from there.
        from_scratch: the backbone's weights are drawn at random, for comparison.
        cluster: this node's place among several; TF_CONFIG and SLURM are understood without.
        fresh: start anew; what is in the folder is moved into `previous-N/` there.
        quiet: print nothing but warnings.
        callbacks: more Keras callbacks.
    """

    model: Path | str
    run_dir: Path | str
    from_scratch: NotRequired[bool]
    cluster: NotRequired[ClusterAddress | None]
    fresh: NotRequired[bool]
    quiet: NotRequired[bool]
    callbacks: NotRequired[Sequence[keras.callbacks.Callback]]


def train_classifier(
    recipe: ProbeRecipe | FinetuneRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    cluster: ClusterAddress | None = None,
    fresh: bool = False,
    quiet: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> ClassifierResult:
    """Trains by a recipe, or goes on with the run that is in `run_dir`; see `RunOptions`.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    started = time.perf_counter()
    strategy = build_strategy(recipe.train, cluster)
    with watched(strategy, recipe.train):
        start = start_from(model, from_scratch=from_scratch)
        return _train_classifier(
            recipe,
            start,
            strategy,
            run_dir=Path(run_dir),
            fresh=fresh,
            quiet=quiet,
            callbacks=callbacks,
            started=started,
        )


def _train_classifier(
    recipe: ProbeRecipe | FinetuneRecipe,
    start: Start,
    strategy: tf.distribute.Strategy,
    *,
    run_dir: Path,
    fresh: bool,
    quiet: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    started: float,
) -> ClassifierResult:
    team = topology(strategy)
    console, warnings = consoles(team, quiet=quiet)

    data = open_labelled(recipe)
    for advice in check_recipe(
        recipe, replicas=team.replicas, images=len(data.train), on_cpu=team.devices == "CPU"
    ):
        warnings.print(f"[yellow]warning[/] {advice}")
    batch_size, epochs = recipe.train.batch_size, recipe.train.epochs
    steps_per_epoch = len(data.train) // batch_size
    position = Position(steps_per_epoch, epochs * steps_per_epoch)

    images = fingerprint(data.train)
    check_alike(
        strategy,
        recipe,
        images=_with_labels(images, data.train_labels),
        validation_images=_with_labels(fingerprint(data.validation), data.validation_labels),
        weights=start.origin.get("sha256"),
    )
    with run_folder(
        run_dir, recipe, fresh=fresh, strategy=strategy, console=console, warnings=warnings
    ) as folder:
        save_facts(folder, ModelFacts.of(start.recipe, start.origin, data, BY_SGD))
        with strategy.scope():
            classifier = build_classifier(recipe, start.recipe, len(data.class_names))
            if start.weights is not None:
                put_weights(classifier, start.weights)
            compile_classifier(classifier, recipe, steps_per_epoch)
        store = CheckpointStore(folder.checkpoints, kind=recipe.kind, keep_last=recipe.checkpoint.keep_last)
        bad_images = bad_images_of(folder.path, team, recipe.data, images=len(data.train))
        with failures_explained(recipe.train, team.replicas, bad_images):
            resumed_from = resume(
                classifier,
                store,
                position,
                recipe=recipe,
                images=images,
                team=team,
                console=console,
                warnings=warnings,
            )
        folder.keep_metrics_until(position.step)
        console.print(_banner(recipe, start, data, team, steps_per_epoch))

        replica_batch_size = batch_size // team.replicas // recipe.train.accumulation_steps
        validation = Validation(
            classifier,
            data.validation,
            data.validation_labels,
            recipe.data,
            replica_batch_size=min(replica_batch_size, LARGEST_VALIDATION_BATCH),
            team=team,
        )
        checkpointing = Checkpointing(store, recipe, position, images=images, is_chief=team.is_chief)
        log = MetricsLog(folder, recipe, position)
        progress = ShowProgress(
            recipe, position, console, ignorance=("ln classes", math.log(len(data.class_names)))
        )
        validate = Validate(
            validation,
            position,
            every_epochs=recipe.monitor.validate_every_epochs,
            write=log.write if team.is_chief else None,
        )
        watchers: list[keras.callbacks.Callback] = [CountSteps(position, MEANS_OF)]
        if team.is_chief:
            watchers += [log, progress]
        # Checkpoints last: what the others made of a step is known before the step counts as done.
        watchers += [validate, *callbacks, StopWhenDiverged(recipe, position, checkpointing), checkpointing]

        def batches_from(step: int) -> Any:
            return training_batches(
                recipe,
                data.train,
                steps_per_epoch=steps_per_epoch,
                start_step=step,
                total_steps=position.total_steps,
                workers=team.workers,
                worker=team.worker,
                replica_batch_size=replica_batch_size,
                bad_images=bad_images,
                labelled=True,
            )

        try:
            with checkpointing.listening(), failures_explained(recipe.train, team.replicas, bad_images):
                if team.is_chief:
                    log.open()
                fit(classifier, position, batches_from, epochs=epochs, callbacks=watchers)
                counts = validate.counts or validation.measure()  # a run that had ended is only looked at
        finally:
            progress.close()
            log.close()

        last, best = position.validation["last"], position.validation["best"]
        summary = {
            "recipe": recipe.name,
            "kind": recipe.kind,
            "how": BY_SGD,
            "origin": start.origin,
            "last": last,
            "best": best,
            "train_loss_first": position.first_loss,
            "train_loss_last": position.last_loss,
            "classes": len(data.class_names),
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "bad_images": bad_images.count,
            "epochs": epochs,
            "steps": position.step,
            "replicas": team.replicas,
            "resumed_from_step": resumed_from,
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
        }
        if team.is_chief:
            title = f"{recipe.name}: top-1 {100 * last['top1']:.1f} % of {len(data.validation):,} images"
            write_results(folder.path, counts, data.class_names, title)
        folder.write_summary(summary)
        console.print(
            f"last epoch ({last['epoch']}): top-1 {100 * last['top1']:.2f} %, top-5 {100 * last['top5']:.2f} %\n"
            f"best epoch ({best['epoch']}): top-1 {100 * best['top1']:.2f} %, top-5 {100 * best['top5']:.2f} %"
        )
    return ClassifierResult(model=classifier, run_dir=run_dir, summary=summary)


def _with_labels(images: Mapping[str, Any], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {**images, "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest()}


def compile_classifier(model: Classifier, recipe: ProbeRecipe | FinetuneRecipe, steps_per_epoch: int) -> None:
    """Gives the model its optimiser: one rate for the backbone, one for the classifier."""
    of_backbone, of_classifier = recipe.learning_rates
    own = {id(variable) for variable in model.classifier.trainable_variables}
    rates = [of_classifier if id(v) in own else of_backbone for v in model.trainable_variables]
    optimizer = SGD(
        EpochSchedule(
            epoch_shares(recipe.optimizer, epochs=recipe.train.epochs), steps_per_epoch=steps_per_epoch
        ),
        rates=[rate for rate in rates if rate is not None],
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
    )
    # Loss scaling is the model's own: Keras' decides on one replica's gradients.
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)


def _banner(
    recipe: ProbeRecipe | FinetuneRecipe,
    start: Start,
    data: LabelledData,
    team: Topology,
    steps_per_epoch: int,
) -> str:
    origin = start.origin
    weights = (
        f"{origin['run']}, step {origin['step']}" if start.weights is not None else "random initialisation"
    )
    return (
        f"{recipe.name}: {len(data.train):,} images, {len(data.class_names):,} classes, "
        f"{len(data.validation):,} validation images; backbone: {weights}"
        f"{', frozen' if recipe.kind == 'probe' else ''}\n"
        + how_it_trains(recipe.train, team, steps_per_epoch)
    )
