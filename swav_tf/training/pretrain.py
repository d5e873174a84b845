"""Pretraining by SwAV: the model, its evaluation and its summary. Everything else is in job.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import keras
import numpy as np

from swav_tf.data.pictures import contact_sheet
from swav_tf.data.sources import open_source
from swav_tf.knn import BASELINES, VIEWS
from swav_tf.method.swav import SwAV
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log
from swav_tf.recipe.auto import Remedy
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav, init_from, read_pretrained
from swav_tf.training.callbacks import CollapseWarning
from swav_tf.training.job import Job, Result, open_job
from swav_tf.training.knn_monitor import evaluators
from swav_tf.training.rendezvous import ClusterAddress

AVERAGED = ("loss", "code_entropy", "projection_spread", "gradient_norm")


def pretrain(
    recipe: Recipe,
    *,
    run_dir: Path | str,
    cluster: ClusterAddress | None = None,
    fresh: bool = False,
    weights: Path | str | None = None,
    quiet: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    rescue: Callable[[list[Remedy]], Remedy | None] | None = None,
) -> Result[SwAV]:
    """Pretrain according to a recipe, or resume the run in `run_dir`.

    Args:
        recipe: all settings.
        run_dir: folder of the run; several workers need it on a shared file system. If it contains a checkpoint, the
            run resumes.
        cluster: address of this worker; not needed with TF_CONFIG or SLURM.
        fresh: start over; the earlier run is moved into `previous-N/`.
        weights: run folder or import to take the initial weights from, instead of random ones.
        quiet: show no progress and log only warnings.
        callbacks: further Keras callbacks.
        rescue: chooses a remedy after a collapse, which then ends the run (`rescue.py`); None: it is a warning.

    Raises:
        Collapsed: `rescue` returned a remedy.
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    with open_job(recipe, run_dir, cluster, quiet=quiet) as job:
        source = open_source(recipe.data)
        # Every worker opens the images of the k-NN evaluation: what is wrong with them ends all at once.
        judges = evaluators(job, recipe, source)
        initial = read_pretrained(weights)[0].facts["sha256"] if weights else None
        job.open(source, fresh=fresh, weights=initial)
        position = job.position
        position.usage = np.zeros(recipe.model.prototypes, np.int64)

        model = job.build(partial(build_swav, recipe, steps_per_epoch=position.steps_per_epoch))
        init_from(model, weights, job.folder, resumed=job.resumed_from is not None)
        job.start()
        if done := job.complete(model):
            return done

        crops = " + ".join(f"{group.count} x {group.size} px" for group in recipe.crops)
        log.info(f"{recipe.name}: {len(source):,} images, {crops}, {recipe.model.prototypes} prototypes")
        ln_k = math.log(recipe.model.prototypes)
        shown = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: _show_crops(job, recipe))
        watching = [shown, CollapseWarning(recipe, position, rescue), *judges] if job.team.is_chief else []
        job.fit(model, [*watching, *callbacks], averaged=AVERAGED, chance=("ln K", ln_k))
        return job.finish(
            model,
            ln_k=ln_k,
            images=len(source),
            loss_first=position.first_loss,
            loss_last=position.last_loss,
            **{key: position.validation.get(key) for key in ("knn_top1", *BASELINES, *VIEWS)},
            prototypes_used=int(np.count_nonzero(position.usage)),
            prototypes=recipe.model.prototypes,
        )


def _show_crops(job: Job, recipe: Recipe) -> None:
    """Show the crops of some images in TensorBoard and the trackers when a run starts."""
    if job.position.step == 0 and (recipe.monitor.tensorboard or recipe.monitor.track):
        with suppress(DataError):  # the training itself reports broken images
            sheet = contact_sheet(job.source, recipe, rows=6)
            job.metrics.image("crops", np.asarray(sheet.convert("RGB")))
