"""Build the model of a recipe, new or with the weights of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from swav_tf.method.feature_queue import FeatureQueue
from swav_tf.method.loss_scale import LossScale
from swav_tf.method.optimizers import LARS, Adam, MomentumOptimizer
from swav_tf.method.schedule import WarmupCosine
from swav_tf.method.swav import ASSIGN_CROPS, SwAV
from swav_tf.model.backbone import build_backbone
from swav_tf.model.batch_norm import replace_keras_batch_norm
from swav_tf.model.head import Prototypes, build_head
from swav_tf.model.replicas import replica_count
from swav_tf.model.startup import set_keras
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.log import log
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import IMPORTED, Checkpoint
from swav_tf.runs.folder import RunFolder, read_checkpoint
from swav_tf.runs.model_facts import read_pretraining_recipe
from swav_tf.training.state import assign_arrays, named_variables


def build_swav(recipe: Recipe, *, steps_per_epoch: int = 1, backbone: keras.Model | None = None) -> SwAV:
    """Build a compiled SwAV model with the recipe's seed, under the current strategy.

    Args:
        recipe: all settings.
        steps_per_epoch: for the schedule and the start of the queue; to compute features it is not needed.
        backbone: another network than the recipe's, from normalized images (n, height, width, 3) of all sizes of
            crops to features (n, F), such as one of `keras.applications` with `include_top=False, pooling="avg"`. Its
            batch normalization becomes `swav_tf.model.batch_norm.BatchNorm`, in place.

    Raises:
        RecipeError: the recipe's backbone does not exist.
        UsageError: `backbone` does not return vectors.
    """
    if backbone is not None and len(backbone.output_shape) != 2:
        raise UsageError(
            "backbone must return features (n, F). Received: a model with outputs of shape "
            f"{backbone.output_shape}. Add keras.layers.GlobalAveragePooling2D, or use pooling='avg'."
        )
    keras.utils.set_random_seed(recipe.train.seed)
    with dtype_policy(recipe.train.precision):
        if backbone is None:
            backbone = build_backbone(recipe.model)
        else:
            replace_keras_batch_norm(backbone, synchronized=recipe.model.batch_norm.synchronised)
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
        method=recipe.method.model_copy(
            update={"prototypes_frozen_steps": recipe.frozen_steps(steps_per_epoch)}
        ),
        mean=recipe.augment.mean,
        std=recipe.augment.std,
        queue=queue,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )
    model.compile(optimizer=_optimizer(recipe, steps_per_epoch))
    return model


def _optimizer(recipe: Recipe, steps_per_epoch: int) -> MomentumOptimizer:
    wanted = recipe.optimizer
    rate = WarmupCosine.of(wanted, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch)
    momentum, decay = wanted.momentum, wanted.weight_decay
    if wanted.kind == "adam":
        return Adam(rate, momentum=momentum, weight_decay=decay)
    trust = wanted.trust_coefficient
    return LARS(rate, momentum=momentum, weight_decay=decay, trust_coefficient=trust)


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Set Keras' dtype policy for the layers created inside, then restore the previous one."""
    set_keras()  # a script may have changed them since
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def load_swav(
    run_dir: Path | str, *, step: int | None = None, backbone_only: bool = False
) -> tuple[SwAV, Recipe]:
    """Load the model of a pretraining run or an import, and its recipe; by default from the newest checkpoint.

    With `backbone_only` head and prototypes are random.

    Raises:
        UsageError: no such run or checkpoint, a run of another kind, or a backbone without the head requested.
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint, recipe = read_pretrained(run_dir, step=step)
    model = build_swav(recipe)
    parts = ("backbone",) if backbone_only else model.parts
    if missing := [part for part in parts if part not in parts_of(checkpoint)]:
        raise UsageError(
            f"{run_dir} was imported from a backbone alone and has no {' and no '.join(missing)}. Use a complete model."
        )
    variables = named_variables(model, parts)
    assign_arrays(variables, checkpoint.arrays, what=f"{checkpoint.path} does not fit its recipe")
    return model, recipe


def parts_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the parts of the model in a pretraining checkpoint: all, unless a backbone was imported alone."""
    if IMPORTED not in checkpoint.facts:
        return SwAV.parts
    return tuple(part for part in SwAV.parts if part in checkpoint.facts[IMPORTED]["parts"])


def read_pretrained(run_dir: Path | str, *, step: int | None = None) -> tuple[Checkpoint, Recipe]:
    """Read a checkpoint (default: the newest) of a pretraining run and its recipe, without building the model.

    Raises:
        UsageError: no such run or checkpoint, a run of another kind, or config.yaml was changed.
        CheckpointError: the checkpoint is damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"A run folder must contain config.yaml and checkpoints/. Received: {run_dir}.")
    recipe = read_pretraining_recipe(run_dir)
    return read_checkpoint(run_dir, recipe, step=step), recipe


def init_from(model: SwAV, source: Path | str | None, folder: RunFolder, *, resumed: bool) -> None:
    """Load the weights of another run or an import into a new model; schedule, optimizer and queue start fresh.

    A resumed model keeps its weights; then this only checks that the run was started from the same source, which is
    recorded in the folder. Without a source, a run folder, the model keeps the weights that it has.

    Raises:
        UsageError: the weights do not fit the model, or the resumed run was started from other weights.
        CheckpointError: the source's checkpoint is damaged.
    """
    record = folder.path / "started_from.json"
    if source is None:
        if folder.writer and not resumed:
            record.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        return
    checkpoint, recipe = read_pretrained(source)
    sha256 = checkpoint.facts["sha256"]
    if resumed:
        before = json.loads(record.read_text()) if record.exists() else None
        same = before is not None and before["sha256"] == sha256
        # A run that trained on since is still the one that this run was started from.
        if before is None or not (same or Path(before["run"]).resolve() == Path(source).resolve()):
            raise UsageError(
                f"A run resumes with its own weights. {folder.path} was not started from {source}: omit --weights, "
                "or use another --run-dir or --fresh."
            )
        since = "" if same else " These have changed since; the run keeps its own."
        log.info("This run was started from the weights of %s.%s", source, since)
        return
    parts = parts_of(checkpoint)
    assign_arrays(
        named_variables(model, parts),
        checkpoint.arrays,
        what=f"The weights of {source} do not fit the recipe's model",
        remedy="Change the recipe's model, or import the backbone alone: swav-tf weights import --backbone-only.",
        error=UsageError,
    )
    if folder.writer:
        facts = {"run": str(source), "recipe": recipe.name, "step": checkpoint.step, "sha256": sha256}
        with atomic_write(record) as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n")
    random = [part for part in model.parts if part not in parts]
    at_random = f"; {' and '.join(random)} at random" if random else ""
    log.info("Initialized %s from %s%s.", ", ".join(parts), source, at_random)
