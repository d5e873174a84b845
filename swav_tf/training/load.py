"""A trained model out of a run folder."""

from __future__ import annotations

from pathlib import Path

from swav_tf.errors import UsageError
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Recipe
from swav_tf.recipe_files import load_recipe
from swav_tf.training.build import build_swav
from swav_tf.training.checkpoint import Checkpoint, CheckpointStore
from swav_tf.training.state import named_variables


def load_swav(run_dir: Path | str, *, step: int | None = None) -> tuple[SwAV, Recipe]:
    """The model of a pretraining run with the weights of its newest (or one) checkpoint, and its recipe.

    Raises:
        UsageError: there is no run or no checkpoint, or it is a run of another kind.
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint, recipe = read_pretrained(run_dir, step=step)
    model = build_swav(recipe)
    for name, variable in named_variables(model).items():
        variable.assign(checkpoint.arrays[name])
    return model, recipe


def read_pretrained(run_dir: Path | str, *, step: int | None = None) -> tuple[Checkpoint, Recipe]:
    """The newest (or one) checkpoint of a pretraining run, and its recipe; nothing is built.

    Raises:
        UsageError: there is no run or no checkpoint, or it is a run of another kind.
        CheckpointError: the checkpoint is damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"A run folder must hold config.yaml and checkpoints/. Received: {run_dir}.")
    recipe = load_recipe(run_dir / "config.yaml")
    store = CheckpointStore(run_dir / "checkpoints", kind="pretrain")
    if step is not None and step not in store.steps():
        raise UsageError(f"{run_dir} has checkpoints of steps {store.steps()}. Received: step {step}.")
    checkpoint = store.read(step) if step is not None else store.newest()[0]
    if checkpoint is None:
        raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf pretrain` write one.")
    return checkpoint, recipe
