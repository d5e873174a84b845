"""The main job: build, restore, fit, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swav_tf.data.loader import training_batches
from swav_tf.data.pictures import contact_sheet
from swav_tf.data.sources import ImageSource, fingerprint, open_source
from swav_tf.method.swav import SwAV
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.build import build_swav, read_pretrained, start_with
from swav_tf.training.callbacks import MetricsLog, ShowProgress, WarnOfCollapse, WatchNeighbours
from swav_tf.training.checkpointing import Checkpointing, StopWhenDiverged
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
from swav_tf.training.position import CountAssignments, CountSteps, Position
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.watched import watched

__all__ = ["ClusterAddress", "PretrainResult", "pretrain"]

MEANS_OF = ("loss", "code_entropy", "projection_spread", "gradient_norm")


@dataclass(frozen=True)
class PretrainResult:
    """A run that has ended: the trained model and the figures of summary.json.

    Attributes:
        model: with its last weights.
        run_dir: folder of the run.
        summary: what summary.json holds.
        is_chief: whether this process wrote them; the other workers of a cluster did not.
    """

    model: SwAV
    run_dir: Path
    summary: dict[str, Any]
    is_chief: bool = True


def pretrain(
    recipe: Recipe,
    *,
    run_dir: Path | str,
    cluster: ClusterAddress | None = None,
    fresh: bool = False,
    weights: Path | str | None = None,
    quiet: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> PretrainResult:
    """Trains by a recipe, or goes on with the run that is in `run_dir`.

    Args:
        recipe: all settings.
        run_dir: folder of the run; with a checkpoint in it, the run goes on from there. Several
            workers need it on a file system that all of them see.
        cluster: this node's place among several; TF_CONFIG and SLURM are understood without.
        fresh: start anew; what is in the folder is moved into `previous-N/` there.
        weights: run folder (or import) whose weights the first step begins with, instead of random ones.
        quiet: print nothing but warnings.
        callbacks: more Keras callbacks.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    started = time.perf_counter()
    strategy = build_strategy(recipe.train, cluster)
    with watched(strategy, recipe.train):
        return _pretrain(
            recipe,
            strategy,
            run_dir=Path(run_dir),
            fresh=fresh,
            weights=weights,
            quiet=quiet,
            callbacks=callbacks,
            started=started,
        )


def _pretrain(
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    *,
    run_dir: Path,
    fresh: bool,
    weights: Path | str | None,
    quiet: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    started: float,
) -> PretrainResult:
    team = topology(strategy)
    console, warnings = consoles(team, quiet=quiet)

    source = open_source(recipe.data)
    for advice in check_recipe(
        recipe, replicas=team.replicas, images=len(source), on_cpu=team.devices == "CPU"
    ):
        warnings.print(f"[yellow]warning[/] {advice}")
    images = fingerprint(source)
    steps_per_epoch = len(source) // recipe.train.batch_size
    position = Position(
        steps_per_epoch,
        recipe.train.epochs * steps_per_epoch,
        usage=np.zeros(recipe.model.prototypes, np.int64),
    )

    log: MetricsLog
    neighbours = None
    if recipe.monitor.knn_every_epochs:
        # Opened on every worker, though the chief alone will ask: what is wrong with them ends all at once.
        has_validation = recipe.data.validation_path or recipe.data.validation_split
        validation = open_source(recipe.data, validation=True) if has_validation else None
        neighbours = WatchNeighbours(
            recipe, position, source, validation, lambda kind, values: log.write(kind, values)
        )

    check_alike(
        strategy,
        recipe,
        images=images,
        weights=read_pretrained(weights)[0].facts["sha256"] if weights and team.workers > 1 else None,
    )
    with run_folder(
        run_dir, recipe, fresh=fresh, strategy=strategy, console=console, warnings=warnings
    ) as folder:
        bad_images = bad_images_of(folder.path, team, recipe.data, images=len(source))
        with strategy.scope():
            model = build_swav(recipe, steps_per_epoch=steps_per_epoch)
        store = CheckpointStore(folder.checkpoints, kind="pretrain", keep_last=recipe.checkpoint.keep_last)
        with failures_explained(recipe.train, team.replicas, bad_images):
            resumed_from = resume(
                model,
                store,
                position,
                recipe=recipe,
                images=images,
                team=team,
                console=console,
                warnings=warnings,
            )
        if said := start_with(model, weights, folder, resumed=resumed_from is not None):
            console.print(said)
        if position.step == position.total_steps and (ended := folder.read_summary()):
            console.print(f"this run is complete: {folder.path / 'summary.json'}")
            return PretrainResult(model, folder.path, ended, team.is_chief)
        folder.keep_metrics_until(position.step)
        console.print(_banner(recipe, team, source, steps_per_epoch))

        checkpointing = Checkpointing(store, recipe, position, images=images, is_chief=team.is_chief)
        watchers: list[keras.callbacks.Callback] = [
            CountSteps(position, MEANS_OF),
            CountAssignments(position),
        ]
        log = MetricsLog(
            folder,
            recipe,
            position,
            beside=lambda: {"prototypes_used": int(np.count_nonzero(model.assignments))},
        )
        progress = ShowProgress(
            recipe, position, console, ignorance=("ln K", math.log(recipe.model.prototypes))
        )
        if team.is_chief:
            watchers += [
                log,
                progress,
                WarnOfCollapse(recipe, position, lambda text: warnings.print(f"[yellow]warning[/] {text}")),
            ]
            if neighbours is not None:
                watchers.append(neighbours)
        # Checkpoints last: what the others wrote of a step is on disk before the step counts as done.
        watchers += [*callbacks, StopWhenDiverged(recipe, position, checkpointing), checkpointing]

        def batches_from(step: int) -> Any:
            return training_batches(
                recipe,
                source,
                steps_per_epoch=steps_per_epoch,
                start_step=step,
                total_steps=position.total_steps,
                workers=team.workers,
                worker=team.worker,
                replica_batch_size=recipe.train.batch_size
                // team.replicas
                // recipe.train.accumulation_steps,
                bad_images=bad_images,
            )

        try:
            with checkpointing.listening(), failures_explained(recipe.train, team.replicas, bad_images):
                if team.is_chief:
                    log.open()
                    if position.step == 0 and recipe.monitor.tensorboard:
                        with contextlib.suppress(DataError):  # broken images are the pipeline's to tell of
                            log.image(
                                "crops", np.asarray(contact_sheet(source, recipe, rows=6).convert("RGB"))
                            )
                fit(model, position, batches_from, epochs=recipe.train.epochs, callbacks=watchers)
        finally:
            progress.close()
            log.close()

        summary = {
            "recipe": recipe.name,
            "loss_first": position.first_loss,
            "loss_last": position.last_loss,
            "ln_k": math.log(recipe.model.prototypes),
            "knn_top1": position.validation.get("knn_top1"),
            "prototypes_used": int(np.count_nonzero(position.usage)),
            "prototypes": recipe.model.prototypes,
            "epochs": recipe.train.epochs,
            "steps": position.step,
            "images": len(source),
            "bad_images": bad_images.count,
            "replicas": team.replicas,
            "resumed_from_step": resumed_from,
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
        }
        folder.write_summary(summary)
    return PretrainResult(model, run_dir, summary, team.is_chief)


def _banner(recipe: Recipe, team: Topology, source: ImageSource, steps_per_epoch: int) -> str:
    crops = " + ".join(f"{group.count} x {group.size} px" for group in recipe.crops)
    return (
        f"{recipe.name}: {len(source):,} images, {crops}, {recipe.model.prototypes} prototypes\n"
        + how_it_trains(recipe.train, team, steps_per_epoch)
    )
