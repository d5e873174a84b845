"""From anybody's weights to a run folder or a file of ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swav_tf.errors import UsageError
from swav_tf.recipe_files import AnyRecipe, kind_of, save_recipe
from swav_tf.training.checkpoint import IMPORTED, CheckpointStore
from swav_tf.training.classifiers.model_facts import NAME, ModelFacts
from swav_tf.weights.classifier import classifier_run
from swav_tf.weights.errors import WeightsError
from swav_tf.weights.fitting import fit
from swav_tf.weights.layout import Sizes
from swav_tf.weights.own import write_safetensors
from swav_tf.weights.pretraining_recipe import pretraining_recipe
from swav_tf.weights.read import STD_KEY, open_weights, sha256_of


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        path: the run folder or file that was written.
        format: whose weights they are, in words.
        sizes: of the model.
        left_out: names of tensors that were not taken.
        recipe: of the run folder; None for a file.
    """

    path: Path
    format: str
    sizes: Sizes
    left_out: tuple[str, ...]
    recipe: AnyRecipe | None


def import_weights(
    source: Path | str,
    to: Path | str,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    backbone_only: bool = False,
    backbone: Path | str | None = None,
    classes: Path | str | None = None,
) -> Imported:
    """Writes somebody's weights as a run folder that can be evaluated, or as a safetensors file of ours.

    A backbone, with or without head and prototypes, makes a folder as of `swav-tf pretrain`; a classifier on
    its backbone makes one as of `swav-tf probe`.

    Args:
        source: a file of any format that `open_weights` knows.
        to: a new folder, or a new file that ends in .safetensors.
        config: recipe of the run folder; its model becomes that of the weights.
        overrides: `path=value`, for the recipe.
        backbone_only: take the backbone, whatever else there is or is missing.
        backbone: for a classifier alone: run folder or file with the backbone that it was trained on.
        classes: for a classifier: text file with a name for each class, one a line; None: numbers.

    Raises:
        UsageError: `to` exists, or the settings do not go together with the weights.
        WeightsError: a file is damaged, unsafe, of no known format, or does not fit.
        RecipeError: the recipe has errors.
    """
    source, to = Path(source), Path(to)
    as_file = to.suffix == ".safetensors"
    if to.exists() and (as_file or not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to must be new: nothing is overwritten. Received: {to}, which is there already.")
    if as_file and (config is not None or overrides):
        raise UsageError("A file has no recipe: give --config and --override with a run folder only.")
    if as_file and (backbone is not None or classes is not None):
        raise UsageError(
            "A file holds what was in FILE: give --backbone and --classes with a run folder only."
        )
    found = open_weights(source)
    fitted = fit(found, source, backbone_only=backbone_only)
    sizes = fitted.sizes
    if sizes.classes is None and (backbone is not None or classes is not None):
        raise UsageError(f"--backbone and --classes are for a classifier. {source} has none: {sizes}.")

    origin = {"file": source.name, "format": found.format, "sha256": sha256_of(source)}
    if as_file:
        std = {STD_KEY: json.dumps(found.std)} if found.std else {}
        write_safetensors(fitted.own_arrays(source), to, origin | std | {"step": str(found.step)})
        return Imported(to, found.format, sizes, fitted.left_out, None)
    if sizes.classes is None:
        recipe = pretraining_recipe(found, sizes, source, config=config, overrides=overrides)
        _write_run(to, recipe, fitted.own_arrays(source), origin)
        return Imported(to, found.format, sizes, fitted.left_out, recipe)
    run = classifier_run(
        found,
        fitted,
        source,
        backbone=None if backbone is None else Path(backbone),
        classes=None if classes is None else Path(classes),
        config=config,
        overrides=overrides,
    )
    _write_run(to, run.recipe, run.arrays, origin, run.facts)
    return Imported(to, found.format, run.sizes, fitted.left_out, run.recipe)


def _write_run(
    to: Path,
    recipe: AnyRecipe,
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, str],
    facts: ModelFacts | None = None,
) -> None:
    """A run folder under another name, then under its own: it is whole, or not there."""
    part = to.with_name(f".{to.name}.part-{os.getpid()}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(part / "checkpoints", kind=kind_of(recipe))
        parts = sorted({name.partition("/")[0] for name in arrays})
        # What training needs to go on (optimiser, position) is not there, and not made up.
        known = {IMPORTED: {**origin, "parts": parts}, "recipe": recipe.model_dump(mode="json")}
        store.write(0, arrays, known, keep=True)
        save_recipe(recipe, part / "config.yaml")
        if facts is not None:
            facts.write(part / NAME)
        part.rename(to)
    except OSError as error:
        raise WeightsError(f"{to} could not be written: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
