"""Import weights into a run folder and export them for PyTorch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import AnyRecipe, kind_of, save_recipe
from swav_tf.runs.checkpoint import IMPORTED, CheckpointStore
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.weights.classifier import classifier_run
from swav_tf.weights.files import STD_KEY, open_weights, read_own, sha256_of
from swav_tf.weights.fitting import Fitted, fit
from swav_tf.weights.layout import Sizes
from swav_tf.weights.own import write_safetensors
from swav_tf.weights.pretraining_recipe import pretraining_recipe
from swav_tf.weights.tensors import WeightsError
from swav_tf.weights.torch_files import write_torch_file


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


Names = Literal["swav", "torchvision", "swav_tf"]
NAMES: tuple[Names, ...] = ("swav", "torchvision", "swav_tf")
TORCH_ENDINGS = (".pth.tar", ".pth", ".pt")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        names: whose names its tensors have.
        tensors: how many there are.
        left_out: names of tensors that these names have no place for.
    """

    path: Path
    names: Names
    tensors: int
    left_out: tuple[str, ...]


def export_weights(source: Path | str, to: Path | str, *, names: Names | None = None) -> Exported:
    """Writes weights as a file for PyTorch (.pth.tar, .pth, .pt) or as .safetensors.

    Args:
        source: a run folder, a checkpoint, or any file that can be imported.
        to: a new file.
        names: `swav`: the released SwAV's, with head and prototypes; `torchvision`: a ResNet alone, the
            classifier of a probe or fine-tuning run as `fc`; `swav_tf`: our own names and layout. Unset:
            `swav_tf` for safetensors, else `swav`.

    Raises:
        UsageError: the file is there, has another ending, or the names have no place for the weights.
        WeightsError, CheckpointError: the source is damaged or of no known format.
    """
    source, to = Path(source), Path(to)
    as_torch = to.name.endswith(TORCH_ENDINGS)
    if not as_torch and to.suffix != ".safetensors":
        raise UsageError(
            f"--output must end in .safetensors or, for PyTorch, in {', '.join(TORCH_ENDINGS)}. Received: {to}."
        )
    if to.exists():
        raise UsageError(
            f"--output must be a new file: nothing is overwritten. Received: {to}, which is there already."
        )
    names = names or ("swav" if as_torch else "swav_tf")
    if names == "swav_tf":
        if as_torch:
            raise UsageError("Our own names are for .safetensors only: PyTorch has other layouts.")
        return _export_own(source, to)

    found = open_weights(source)
    fitted = fit(found, source)
    arrays, left_out = _swav(fitted, source) if names == "swav" else _torchvision(fitted, source)
    tensors = _with_counters(arrays, found.step)
    if as_torch:
        write_torch_file(tensors, to)
    else:
        write_safetensors(tensors, to, {"format": "pt"})
    return Exported(to, names, len(tensors), fitted.left_out + left_out)


def _export_own(source: Path, to: Path) -> Exported:
    left_out: tuple[str, ...] = ()
    own = read_own(source)
    if own is not None:  # as it is: it may have a backbone that PyTorch has no names for
        arrays, step, std = own.arrays, own.step, own.std
    else:
        found = open_weights(source)
        fitted = fit(found, source)
        arrays, step, std, left_out = fitted.own_arrays(source), found.step, found.std, fitted.left_out
    facts = {"step": str(step)} | ({STD_KEY: json.dumps(std)} if std else {})
    write_safetensors(arrays, to, facts)
    return Exported(to, "swav_tf", len(arrays), left_out)


def _swav(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Backbone, head and prototypes as released; or the released linear probe, a classifier alone."""
    sizes = fitted.sizes
    whole = sizes.network is not None and sizes.head is not None and sizes.classes is None
    if not whole and not (sizes.network is None and sizes.classes is not None):
        raise UsageError(
            f"The released SwAV's names are for a backbone with head and prototypes. {source} has: {sizes}. "
            "Give --names torchvision."
        )
    return {f"module.{name}": array for name, array in _arrays(fitted).items()}, ()


def _torchvision(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The backbone by its names, a classifier as `fc`."""
    if fitted.sizes.network is None:
        raise UsageError(f"torchvision's names are for a backbone. {source} has: {fitted.sizes}.")
    arrays = _arrays(fitted)
    head = tuple(name for name in arrays if name.startswith(("projection_head.", "prototypes.")))
    kept = {name: array for name, array in arrays.items() if name not in head}
    return {name.replace("linear.", "fc."): array for name, array in kept.items()}, head


def _arrays(fitted: Fitted) -> dict[str, np.ndarray]:
    return {slot.torch: np.ascontiguousarray(fitted.tensors[slot.torch].float32()) for slot in fitted.slots}


def _with_counters(arrays: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """With the counter of training steps that PyTorch keeps beside each running variance."""
    whole: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        whole[name] = array
        if name.endswith("running_var"):
            whole[name.replace("running_var", "num_batches_tracked")] = np.asarray(step, np.int64)
    return whole
