"""What swav-tf writes itself: run folders, checkpoints, and safetensors files by our own names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.files import kind_of, load_any_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import FACTS, CheckpointError, CheckpointStore
from swav_tf.runs.model_facts import NAME, ModelFacts

PARTS = ("backbone", "head", "prototypes", "classifier")


@dataclass(frozen=True)
class OwnWeights:
    """The weights of a checkpoint.

    Attributes:
        arrays: by our names, in our layout; the state of the optimiser is left behind.
        what: where they are from, in words.
        step: optimiser steps that they were trained for.
        std: channel deviations of the run's images, where it says.
    """

    arrays: dict[str, np.ndarray]
    what: str
    step: int
    std: tuple[float, float, float] | None = None


def read_own_folder(path: Path) -> OwnWeights:
    """The newest checkpoint of a run folder, or the one that the folder is.

    Raises:
        UsageError: it is neither, or has no checkpoint, or a classifier's has no model.json.
        CheckpointError: the checkpoint is damaged.
    """
    path, std = path.resolve(), None
    if (path / FACTS).is_file():
        try:
            facts = json.loads((path / FACTS).read_text())
            kind, step = str(facts["kind"]), int(facts["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error
        store = CheckpointStore(path.parent, kind=kind)
        if store.path(step) != path:
            raise UsageError(
                f"A checkpoint of step {step} must keep its name, {store.path(step).name}. Received: {path}."
            )
    elif (path / "config.yaml").is_file():
        recipe = load_any_recipe(path / "config.yaml")
        kind = kind_of(recipe)
        std = recipe.augment.std if isinstance(recipe, Recipe) else ModelFacts.read(path / NAME).std
        store = CheckpointStore(path / "checkpoints", kind=kind)
        if not store.steps():
            raise UsageError(f"{path} has no checkpoint yet.")
        step = store.steps()[-1]
    else:
        raise UsageError(
            f"A folder must be a run's (config.yaml and checkpoints/) or a checkpoint (state.json). Received: {path}."
        )
    checkpoint = store.read(step)
    arrays = {
        name: array
        for name, array in checkpoint.arrays.items()
        if name.partition("/")[0] in PARTS and array.dtype.kind == "f"  # the seeds of dropouts stay behind
    }
    return OwnWeights(arrays, f"swav-tf {kind} checkpoint, step {step}", step, std)


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all.

    Raises:
        DataError: the disk is full or refuses.
    """
    with atomic_write(path) as partial:
        try:
            save_file(dict(arrays), partial, metadata=dict(metadata))
        except SafetensorError as error:  # what the system said, in its words
            raise OSError(str(error)) from error
