"""Build the model of a recipe, new or with the weights of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from swav_tf.method.feature_queue import FeatureQueue
from swav_tf.method.loss_scale import LossScale
from swav_tf.method.optimizers import LARS
from swav_tf.method.schedule import WarmupCosine
from swav_tf.method.swav import ASSIGN_CROPS, SwAV
from swav_tf.model.backbone import build_backbone
from swav_tf.model.head import Prototypes, build_head
from swav_tf.model.replicas import replica_count
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import IMPORTED, Checkpoint, CheckpointStore
from swav_tf.runs.folder import RunFolder, check_copy
from swav_tf.runs.model_facts import read_pretraining_recipe
from swav_tf.training.state import misfits, named_variables


def build_swav(recipe: Recipe, *, steps_per_epoch: int = 1) -> SwAV:
    """A compiled SwAV model with the recipe's own seed, under the strategy in scope.

    Args:
        recipe: all settings.
        steps_per_epoch: optimiser steps an epoch; the schedule and the queue's start follow from it, so a
            model that is to be trained needs it. 1 will do for one that only computes features.

    Raises:
        RecipeError: no such backbone.
    """
    keras.utils.set_random_seed(recipe.train.seed)
    with dtype_policy(recipe.train.precision):
        backbone = build_backbone(recipe.model)
        head = build_head(recipe.model, feature_dim=backbone.output_shape[-1])
        prototypes = Prototypes(recipe.model.prototypes, name="prototypes")
    queue = None
    if recipe.queue_length:
        queue = FeatureQueue(
            length=recipe.queue_length // replica_count(),
            projection_dim=recipe.model.projection_dim,
            from_step=recipe.method.queue.from_epoch * steps_per_epoch,
            assign_crops=ASSIGN_CROPS,
        )
    model = SwAV(
        backbone=backbone,
        head=head,
        prototypes=prototypes,
        method=recipe.method,
        mean=recipe.augment.mean,
        std=recipe.augment.std,
        queue=queue,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )
    optimizer = LARS(
        WarmupCosine.of(recipe.optimizer, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch),
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
        trust_coefficient=recipe.optimizer.trust_coefficient,
    )
    # Loss scaling is the model's own: Keras' decides on one replica's gradients.
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)
    return model


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers made inside compute under this Keras dtype policy; the caller's own comes back after."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def load_swav(
    run_dir: Path | str, *, step: int | None = None, backbone_only: bool = False
) -> tuple[SwAV, Recipe]:
    """The model of a pretraining run with the weights of its newest (or one) checkpoint, and its recipe.

    Args:
        run_dir: folder of the run, or of an import.
        step: of the checkpoint; unset: the newest.
        backbone_only: leave head and prototypes as they are made: random.

    Raises:
        UsageError: there is no run or no checkpoint, it is a run of another kind, or a backbone was imported
            alone and more is asked for.
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint, recipe = read_pretrained(run_dir, step=step)
    model = build_swav(recipe)
    wanted = ("backbone",) if backbone_only else model.parts
    if missing := [part for part in wanted if part not in parts_of(checkpoint)]:
        raise UsageError(
            f"{run_dir} was imported from a backbone alone. It has no {' and no '.join(missing)}: what needs them "
            "needs another model."
        )
    for name, variable in named_variables(model).items():
        if name.partition("/")[0] in wanted:
            variable.assign(checkpoint.arrays[name])
    return model, recipe


def parts_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The parts of the model that a checkpoint of pretraining holds: all but where a backbone was imported alone."""
    if IMPORTED not in checkpoint.facts:
        return SwAV.parts
    return tuple(part for part in SwAV.parts if part in checkpoint.facts[IMPORTED]["parts"])


def read_pretrained(run_dir: Path | str, *, step: int | None = None) -> tuple[Checkpoint, Recipe]:
    """The newest (or one) checkpoint of a pretraining run, and its recipe; nothing is built.

    Raises:
        UsageError: there is no run or no checkpoint, it is a run of another kind, or config.yaml is not what it
            was trained by.
        CheckpointError: the checkpoint is damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"A run folder must hold config.yaml and checkpoints/. Received: {run_dir}.")
    recipe = read_pretraining_recipe(run_dir)
    store = CheckpointStore(run_dir / "checkpoints", kind="pretrain")
    if step is not None and step not in store.steps():
        raise UsageError(f"{run_dir} has checkpoints of steps {store.steps()}. Received: step {step}.")
    checkpoint = store.read(step) if step is not None else store.latest()
    if checkpoint is None:
        raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf pretrain` write one.")
    check_copy(run_dir / "config.yaml", recipe, checkpoint)
    return checkpoint, recipe


RECORD = "started_from.json"


def start_with(model: SwAV, source: Path | str | None, folder: RunFolder, *, resumed: bool) -> str | None:
    """Puts the weights of another run (or an import) into a model before its first step.

    The schedule, the optimiser and the queue begin anew. A run that is gone on with has them already:
    then it is only checked that these are the weights it began with.

    Args:
        model: a new one, or one that was restored from a checkpoint of `folder`.
        source: run folder that the weights are in; None: the model keeps those it has.
        folder: of this run; it gets a record of the source.
        resumed: the model was restored.

    Returns:
        What was done, in words; None: nothing.

    Raises:
        UsageError: the weights do not fit the recipe's model, all that does not is listed; or the run
            that is gone on with began with others.
        CheckpointError: the source's checkpoint is damaged.
    """
    record = folder.path / RECORD
    if source is None:
        if folder.writer and not resumed:
            record.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        return None
    checkpoint, recipe = read_pretrained(source)
    facts = {
        "run": str(source),
        "recipe": recipe.name,
        "step": checkpoint.step,
        "sha256": checkpoint.facts["sha256"],
    }
    if resumed:
        before = json.loads(record.read_text())["sha256"] if record.exists() else None
        if before != facts["sha256"]:
            raise UsageError(
                f"A run goes on with its own weights. {folder.path} did not begin with those of {source}: leave out "
                "--weights, or give another --run-dir or --fresh."
            )
        return f"this run began with the weights of {source}"
    parts = parts_of(checkpoint)
    targets = {
        name: variable for name, variable in named_variables(model).items() if name.partition("/")[0] in parts
    }
    if wrong := misfits(targets, checkpoint.arrays):
        raise UsageError(
            f"The weights of {source} do not fit the recipe's model:\n  "
            + "\n  ".join(wrong)
            + "\nChange the recipe's model, or import the backbone alone: swav-tf weights import --backbone-only."
        )
    for name, variable in targets.items():
        variable.assign(checkpoint.arrays[name])
    if folder.writer:
        with atomic_write(record) as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n")
    new = [part for part in model.parts if part not in parts]
    return f"{', '.join(parts)} of {source}" + (f"; {' and '.join(new)} are new" if new else "")
