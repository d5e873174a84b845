"""A trained model out of a run folder."""

from __future__ import annotations

from pathlib import Path

from swav_tf.errors import UsageError
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Recipe
from swav_tf.training.build import build_swav
from swav_tf.training.checkpoint import IMPORTED, Checkpoint, CheckpointStore
from swav_tf.training.classifiers.model_facts import read_pretraining_recipe
from swav_tf.training.run_folder import check_copy
from swav_tf.training.state import named_variables


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
