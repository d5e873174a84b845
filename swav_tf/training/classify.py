"""Train a classifier on labeled images: the linear probe by SGD, and fine-tuning. The common part is in job.py."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import keras

from swav_tf.data.labels import LabelledData, open_labelled
from swav_tf.data.sources import fingerprint
from swav_tf.method.optimizers import SGD, EpochSchedule, epoch_shares
from swav_tf.plumbing.log import log
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.runs.model_facts import BY_SGD, ModelFacts, save_facts
from swav_tf.training.classifier import Classifier
from swav_tf.training.classifier_folder import Start, start_from
from swav_tf.training.job import Job, open_job
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.results import write_results
from swav_tf.training.validation import Validate, Validation

AVERAGED = ("loss", "top1", "gradient_norm")
LARGEST_VALIDATION_BATCH = 256  # per replica


@dataclass(frozen=True)
class ClassifierResult:
    """A completed run: the trained model and the content of summary.json."""

    model: Classifier
    run_dir: Path
    summary: dict[str, Any]


class RunOptions(TypedDict):
    """Options of a probe and of fine-tuning in addition to the recipe.

    Attributes:
        model: run folder of the pretraining; with `from_scratch` a recipe is enough.
        run_dir: folder of this run; if it contains a checkpoint, the run resumes from it.
        from_scratch: initialize the backbone at random, for comparison.
        cluster: address of this worker; not needed with TF_CONFIG or SLURM.
        fresh: start over; the earlier run is moved into `previous-N/`.
        quiet: show no progress and log only warnings.
        callbacks: further Keras callbacks.
    """

    model: Path | str
    run_dir: Path | str
    from_scratch: NotRequired[bool]
    cluster: NotRequired[ClusterAddress | None]
    fresh: NotRequired[bool]
    quiet: NotRequired[bool]
    callbacks: NotRequired[Sequence[keras.callbacks.Callback]]


def probe(recipe: ProbeRecipe, **options: Unpack[RunOptions]) -> ClassifierResult:
    """Train a linear classifier on a frozen backbone (docs/algorithm.md, "Linear probe").

    The backbone is in inference mode, has no gradient and keeps its moving averages.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    return _train(recipe, **options)


def finetune(recipe: FinetuneRecipe, **options: Unpack[RunOptions]) -> ClassifierResult:
    """Train a backbone and a classifier, each with its own learning rate (docs/algorithm.md, "Fine-tuning").

    Batch normalization is in training mode and synchronized over all replicas.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    return _train(recipe, **options)


def _train(
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
    with open_job(recipe, run_dir, cluster, quiet=quiet) as job:
        start = start_from(model, from_scratch=from_scratch)
        data = open_labelled(recipe)
        open_folder(job, start, data, how=BY_SGD, fresh=fresh)

        def build() -> Classifier:
            classifier = start.build(recipe, class_count=len(data.class_names))
            compile_classifier(classifier, recipe, job.position.steps_per_epoch)
            return classifier

        classifier = job.build(build)
        validation = Validation(
            classifier,
            data.validation,
            data.validation_labels,
            recipe.data,
            replica_batch_size=min(job.replica_batch_size, LARGEST_VALIDATION_BATCH),
            team=job.team,
        )
        validate = Validate(
            validation, job.position, job.metrics, every_epochs=recipe.monitor.validate_every_epochs
        )
        job.fit(
            classifier,
            [validate, *callbacks],
            averaged=AVERAGED,
            chance=("ln classes", math.log(len(data.class_names))),
        )
        counts = validate.counts or validation.measure()  # measure again if the run was complete already

        last, best = job.position.validation["last"], job.position.validation["best"]
        if job.team.is_chief:
            title = f"{recipe.name}: top-1 {100 * last['top1']:.1f} % of {len(data.validation):,} images"
            write_results(job.run_dir, counts, data.class_names, title)
        summary = job.finish(
            kind=recipe.kind,
            how=BY_SGD,
            origin=start.origin,
            last=last,
            best=best,
            train_loss_first=job.position.first_loss,
            train_loss_last=job.position.last_loss,
            classes=len(data.class_names),
            train_images=len(data.train),
            validation_images=len(data.validation),
        )
        for name, found in (("last", last), ("best", best)):
            accuracies = f"top-1 {100 * found['top1']:.2f} %, top-5 {100 * found['top5']:.2f} %"
            log.info("%s epoch (%s): %s", name, found["epoch"], accuracies)
        return ClassifierResult(model=classifier, run_dir=job.run_dir, summary=summary)


def open_folder(
    job: Job, start: Start, data: LabelledData, *, how: str, fresh: bool, in_steps: bool = True
) -> None:
    """Open the run folder and write model.json.

    Raises:
        UsageError: workers differ, or the folder contains a run with other settings, weights or images.
    """
    job.open(
        data.train,
        fresh=fresh,
        in_steps=in_steps,
        **{
            f"{name}_labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest()
            for name, labels in (("train", data.train_labels), ("validation", data.validation_labels))
        },
        validation_images=fingerprint(data.validation),
        weights=start.origin.get("sha256"),
    )
    save_facts(job.folder, ModelFacts.of(start.recipe, start.origin, data, how))
    origin = start.origin
    source = f"{origin['run']}, step {origin['step']}" if "run" in origin else "random initialization"
    log.info(
        f"{job.recipe.name}: {len(data.train):,} images, {len(data.class_names):,} classes, "
        f"{len(data.validation):,} validation images; backbone: {source}"
    )


def compile_classifier(model: Classifier, recipe: ProbeRecipe | FinetuneRecipe, steps_per_epoch: int) -> None:
    """Compile with SGD: one learning rate for the backbone, one for the classifier."""
    backbone_rate, classifier_rate = recipe.learning_rates
    own = {id(variable) for variable in model.classifier.trainable_variables}
    rates = [classifier_rate if id(v) in own else backbone_rate for v in model.trainable_variables]
    optimizer = SGD(
        EpochSchedule(
            epoch_shares(recipe.optimizer, epochs=recipe.train.epochs), steps_per_epoch=steps_per_epoch
        ),
        rates=[rate for rate in rates if rate is not None],
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
    )
    # The model scales the loss itself: Keras decides on one replica's gradients.
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)
