"""Train a classifier on labeled images: the linear probe by SGD, and fine-tuning. The common part is in job.py."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from swav_tf.data.labels import LabeledData, open_labeled
from swav_tf.data.sources import fingerprint
from swav_tf.method.optimizers import SGD, EpochSchedule, epoch_shares
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.model_facts import BY_SGD, ModelFacts, save_facts
from swav_tf.training.classifier import Classifier, Start, start_from
from swav_tf.training.job import Job, Result, open_job
from swav_tf.training.logistic import fit_classifier
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.validation import Counts, Validate, Validation, write_results

AVERAGED = ("loss", "top1", "gradient_norm")
FEWEST_LABELS = 5  # a class, for fine-tuning without a remark
SMALLEST_FALL = 0.01  # of the loss over a tenth of the run, as a share of ln C, that is reported
LARGEST_VALIDATION_BATCH = 256  # per replica


def train_classifier(
    recipe: ProbeRecipe | FinetuneRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    cluster: ClusterAddress | None = None,
    fresh: bool = False,
    quiet: bool = False,
    least_steps: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Result[Classifier]:
    """Train a linear classifier on a frozen backbone, or fine-tune both, by the kind of the recipe.

    A probe's backbone is in inference mode, has no gradient and keeps its moving averages. In fine-tuning, batch
    normalization is in training mode and synchronized over all replicas (docs/algorithm.md).

    Args:
        recipe: all settings.
        model: run folder of the pretraining; with `from_scratch` a recipe is enough.
        run_dir: folder of this run; if it contains a checkpoint, the run resumes from it.
        from_scratch: initialize the backbone at random, for comparison.
        cluster: address of this worker; not needed with TF_CONFIG or SLURM.
        fresh: start over; the earlier run is moved into `previous-N/`.
        quiet: show no progress and log only warnings.
        least_steps: lengthen a fine-tuning of fewer steps, which few images make, to a multiple of its epochs.
        callbacks: further Keras callbacks.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    with open_job(recipe, run_dir, cluster, quiet=quiet) as job:
        from_probe = _starts_from_probe(recipe, job.team.workers)
        recipe, start, data = open_run(
            job, model, how=BY_SGD, from_scratch=from_scratch, fresh=fresh, least_steps=least_steps
        )
        position, classes = job.position, len(data.class_names)
        classifier = job.build(partial(_build, start, recipe, classes, position.steps_per_epoch))
        validate = _validate(job, recipe, classifier, data)
        job.start()
        if _summarizes(job, validate.images) and (done := job.complete(classifier)):
            return done
        if from_probe and job.resumed_from is None:
            fit_classifier(classifier, data, recipe, job.bad_images)
            validate.measure_start()
        job.fit(
            classifier, [validate, *callbacks], averaged=AVERAGED, chance=("ln classes", math.log(classes))
        )
        save_results(job, validate.of_last_step(), data, title=recipe.name)
        _report_loss_of_accuracy(position.validation)
        return job.finish(
            classifier,
            **run_facts(recipe, start, data, BY_SGD),
            converged=_report_convergence(job, classes),
            **{name: found for name, found in position.validation.items() if name != "images"},
            validation_sha256=validate.images,
            train_loss_first=position.first_loss,
            train_loss_last=position.last_loss,
        )


def _starts_from_probe(recipe: ProbeRecipe | FinetuneRecipe, workers: int) -> bool:
    from_probe = isinstance(recipe, FinetuneRecipe) and recipe.init_classifier == "probe"
    if from_probe and workers > 1:
        raise UsageError(
            "init_classifier=probe is fitted by one process, which may use several GPUs. Received: "
            f"{workers} workers. Use one, or -o init_classifier=random."
        )
    return from_probe


def _summarizes(job: Job, validation_sha256: str) -> bool:
    """Return whether the summary, if any, is about these validation images; the checkpoint may be about others."""
    # Earlier versions recorded the images in the checkpoint only.
    saved = job.position.validation.get("images")
    return (job.folder.read_summary() or {}).get("validation_sha256", saved) == validation_sha256


def _build(
    start: Start, recipe: ProbeRecipe | FinetuneRecipe, class_count: int, steps_per_epoch: int
) -> Classifier:
    classifier = start.build(recipe, class_count=class_count)
    compile_classifier(classifier, recipe, steps_per_epoch)
    return classifier


def _validate(
    job: Job, recipe: ProbeRecipe | FinetuneRecipe, classifier: Classifier, data: LabeledData
) -> Validate:
    batch_size = min(job.replica_batch_size, LARGEST_VALIDATION_BATCH)
    images, labels = data.validation, data.validation_labels
    validation = Validation(
        classifier, images, labels, recipe.data, replica_batch_size=batch_size, team=job.team
    )
    every = recipe.monitor.validate_every_epochs
    names = fingerprint(images)["names_sha256"]
    identity = hashlib.sha256(names.encode() + labels.tobytes()).hexdigest()
    return Validate(validation, job.position, job.metrics, every_epochs=every, images=identity)


def _report_loss_of_accuracy(found: Mapping[str, Any]) -> None:
    if (begun := found.get("initial")) and found["last"]["top1"] < begun["top1"]:
        log.warning(
            f"Fine-tuning ended at {100 * found['last']['top1']:.2f} %, below the probe that it started from, "
            f"{100 * begun['top1']:.2f} %. Use the probe, more train.epochs, or lower rates."
        )


def _report_convergence(job: Job, class_count: int) -> bool:
    """Return whether the training loss no longer falls; warn if it does. Only the chief knows."""
    warning = still_improving(job.folder.metrics, chance=math.log(class_count)) if job.team.is_chief else None
    if warning is not None:
        probe = job.recipe.kind == "probe"
        remedy = " Or use --cached, which fits the classifier to convergence." if probe else ""
        log.warning("%s", warning + remedy)
    return warning is None


def still_improving(metrics: Path, *, chance: float) -> str | None:
    """Return a warning if the training loss still fell in the last tenth of the epochs, else None.

    Args:
        metrics: metrics.jsonl of the complete run.
        chance: loss of an untrained classifier, ln C.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    # An epoch has none if no step of it was finite.
    losses = [line["loss"] for line in lines if line["kind"] == "epoch" and "loss" in line]
    tenth = max(1, len(losses) // 10)
    if len(losses) < 2:
        return None
    fell = float(np.mean(losses[-2 * tenth : -tenth]) - np.mean(losses[-tenth:]))
    if fell <= SMALLEST_FALL * chance:
        return None
    return (
        f"The training loss still fell by {fell:.3f} in the last {tenth} of {len(losses)} epochs, so the "
        "classifier has not converged, and its accuracy is that of a short training. Use more train.epochs."
    )


probe = finetune = train_classifier


def open_run(
    job: Job, model: Path | str, *, how: str, from_scratch: bool, fresh: bool, least_steps: int = 0
) -> tuple[ProbeRecipe | FinetuneRecipe, Start, LabeledData]:
    """Read the backbone, open the images and the run folder, and write model.json; return the recipe to train by.

    Raises:
        UsageError: workers differ, or the folder contains a run with other settings, weights or images.
    """
    recipe = job.recipe
    assert not isinstance(recipe, Recipe)
    start = start_from(model, from_scratch=from_scratch)
    data = open_labeled(recipe)
    if isinstance(recipe, FinetuneRecipe):
        job.recipe = recipe = _for_few_images(recipe, len(data.train), len(data.class_names), least_steps)
    job.open(
        data.train,
        fresh=fresh,
        in_steps=how == BY_SGD,
        train_labels_sha256=hashlib.sha256(data.train_labels.tobytes()).hexdigest(),
        validation_images=fingerprint(data.validation),
        validation_labels_sha256=hashlib.sha256(data.validation_labels.tobytes()).hexdigest(),
        weights=start.origin.get("sha256"),
    )
    save_facts(job.folder, ModelFacts.of(start.recipe, start.origin, data, how))
    if recipe.data.evaluation != (own := start.recipe.data.evaluation):
        view = recipe.data.evaluation
        log.warning(
            f"Images are resized to {view.resize} and cropped to {view.crop} pixels, but the pretraining run used "
            f"{own.resize} and {own.crop}. To use its view: -o data.evaluation.resize={own.resize} "
            f"-o data.evaluation.crop={own.crop} -o crop.size={own.crop}."
        )
    origin = start.origin
    source = f"{origin['run']}, step {origin['step']}" if "run" in origin else "random initialization"
    log.info(
        f"{recipe.name}: {len(data.train):,} images, {len(data.class_names):,} classes, "
        f"{len(data.validation):,} validation images; backbone: {source}"
    )
    return recipe, start, data


def _for_few_images(
    recipe: FinetuneRecipe, images: int, class_count: int, least_steps: int
) -> FinetuneRecipe:
    longer = recipe.lengthened(images, least_steps=least_steps)
    if longer != recipe:
        log.warning(
            f"{images:,} images give few steps: the recipe is extended from {recipe.train.epochs} to "
            f"{longer.train.epochs} epochs. To keep its length, use -o train.epochs={recipe.train.epochs}."
        )
    if (each := images / class_count) < FEWEST_LABELS:
        log.warning(
            f"With only {each:.1f} images per class, the accuracy depends strongly on which images were chosen. "
            "Compare it with `swav-tf probe` and --from-scratch on the same --subset."
        )
    return longer


def run_facts(
    recipe: ProbeRecipe | FinetuneRecipe, start: Start, data: LabeledData, how: str
) -> dict[str, Any]:
    """Return what the summaries of all classifiers contain."""
    return {
        "kind": recipe.kind,
        "how": how,
        "origin": start.origin,
        "classes": len(data.class_names),
        "train_images": len(data.train),
        "validation_images": len(data.validation),
    }


def save_results(job: Job, counts: Counts, data: LabeledData, *, title: str) -> None:
    """Write the accuracy of the trained classifier by class."""
    figures = counts.as_dict()
    if job.team.is_chief:
        title = f"{title}: top-1 {100 * figures['top1']:.1f} % of {len(data.validation):,} images"
        write_results(job.run_dir, counts, data.class_names, title)


def compile_classifier(model: Classifier, recipe: ProbeRecipe | FinetuneRecipe, steps_per_epoch: int) -> None:
    """Compile with SGD: one learning rate for the backbone, one for the classifier."""
    backbone_rate, classifier_rate = recipe.learning_rates
    own = {id(variable) for variable in model.classifier.trainable_variables}
    rates = [classifier_rate if id(v) in own else backbone_rate for v in model.trainable_variables]
    shares = epoch_shares(recipe.optimizer, epochs=recipe.train.epochs)
    optimizer = SGD(
        EpochSchedule(shares, steps_per_epoch=steps_per_epoch),
        rates=[rate for rate in rates if rate is not None],
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
    )
    model.compile(optimizer=optimizer)
