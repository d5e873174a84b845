"""Identify weights, import them into a run folder, and export them for PyTorch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.files import AnyRecipe, save_recipe
from swav_tf.runs.checkpoint import IMPORTED, CheckpointStore
from swav_tf.runs.folder import best_step
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.weights.classifier import classifier_run, pretraining_recipe
from swav_tf.weights.files import metadata_of, open_weights, read_own, sha256_of, write_safetensors
from swav_tf.weights.formats import Weights, recognize
from swav_tf.weights.layout import Fitted, Sizes, compare, fit
from swav_tf.weights.safe_pickle import WeightsError
from swav_tf.weights.torch_files import write_torch_file

Names = Literal["swav", "torchvision", "swav_tf"]
NAMES: tuple[Names, ...] = ("swav", "torchvision", "swav_tf")
TORCH_ENDINGS = (".pth.tar", ".pth", ".pt")


@dataclass(frozen=True)
class Description:
    """What a file of weights contains."""

    format: str
    model: str | None  # in words; None: the shapes are of no network that is known here
    tensors: int  # without counters of steps
    numbers: int
    left_out: tuple[str, ...]  # names of tensors that an import would not use
    problems: tuple[str, ...]  # what is missing, left over or misshapen, one line each


def describe(source: Path, *, prefix: str | None = None) -> Description:
    """Return what is in a file or folder of weights; `prefix` as in `import_weights`."""
    found = open_weights(source, prefix=prefix)
    try:
        sizes, _, lines = compare(found.arrays)
        model, problems = str(sizes), tuple(lines)
    except WeightsError as error:
        model, problems = None, (str(error),)
    numbers = sum(array.size for array in found.arrays.values())
    return Description(found.format, model, len(found.arrays), numbers, found.left_out, problems)


# === Import ===


@dataclass(frozen=True)
class Imported:
    """What was imported, and where to."""

    path: Path
    format: str
    sizes: Sizes
    left_out: tuple[str, ...]  # names of tensors that were not used
    recipe: AnyRecipe | None  # of the run folder; None for a file


def import_weights(
    source: Path | str,
    to: Path | str,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    backbone_only: bool = False,
    backbone: Path | str | None = None,
    classes: Path | str | None = None,
    prefix: str | None = None,
) -> Imported:
    """Write weights of any known format as a run folder that can be evaluated, or as a swav-tf safetensors file.

    A backbone, with or without head and prototypes, becomes a run folder like that of `swav-tf pretrain`; a classifier
    on its backbone becomes one like that of `swav-tf probe`.

    Args:
        source: a file or folder that `open_weights` reads.
        to: a new folder, or a new file that ends in .safetensors.
        config: recipe of the run folder; its model becomes that of the weights.
        overrides: `path=value`, for the recipe.
        backbone_only: use only the backbone, regardless of what else is present or missing.
        backbone: for a classifier without one: run folder or file with the backbone that it was trained on.
        classes: for a classifier: text file with the class names, one per line; None: numbers.
        prefix: of the wanted names in a file with several networks, such as `student` or `model_ema`, with the keys
            of dictionaries and without wrappers (`module.`); None: the usual one.

    Raises:
        UsageError: `to` exists, the settings do not fit the weights, or no tensor has the prefix.
        WeightsError: a file is damaged, unsafe, of an unknown format, or does not fit its model.
        RecipeError: the recipe has errors.
    """
    source, to = Path(source), Path(to)
    as_file, for_classifier = to.suffix == ".safetensors", backbone is not None or classes is not None
    if backbone_only and for_classifier:
        raise UsageError("--backbone-only leaves out the classifier: omit it, or --backbone and --classes.")
    _check_target(to, as_file, for_classifier, with_recipe=config is not None or bool(overrides))
    found = open_weights(source, prefix=prefix)
    fitted = fit(found, source, backbone_only=backbone_only)
    sizes = fitted.sizes
    if sizes.classes is None and for_classifier:
        raise UsageError(f"--backbone and --classes are for a classifier. {source} has none: {sizes}.")

    arrays = fitted.by_own_names()
    origin = {"file": source.name, "format": found.format, "sha256": sha256_of(source)}
    recipe: AnyRecipe | None = None
    if as_file:
        _write_own(to, found, arrays, origin)
    elif sizes.classes is None:
        recipe = pretraining_recipe(found, sizes, source, config=config, overrides=overrides)
        _write_run(to, recipe, arrays, origin)
    else:
        base, names = Path(backbone) if backbone else None, Path(classes) if classes else None
        recipe, facts, used = classifier_run(
            found, fitted, source, backbone=base, classes=names, config=config, overrides=overrides
        )
        if base is not None:
            arrays |= used.by_own_names()
        _write_run(to, recipe, arrays, origin, facts)
        sizes = Sizes(used.sizes.network, used.sizes.width, classes=sizes.classes)
    return Imported(to, found.format, sizes, fitted.left_out, recipe)


def _check_target(to: Path, as_file: bool, for_classifier: bool, *, with_recipe: bool) -> None:
    if to.exists() and (as_file or not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to must be new: nothing is overwritten. Received: {to}, which exists.")
    if as_file and with_recipe:
        raise UsageError("A file has no recipe: use --config and -o only with a run folder.")
    if as_file and for_classifier:
        raise UsageError(
            "--backbone and --classes are for a run folder: a file contains only what FILE does."
        )


def _write_run(
    to: Path,
    recipe: AnyRecipe,
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, str],
    facts: ModelFacts | None = None,
) -> None:
    """Write a run folder, completely or not at all."""
    part = to.with_name(f".{to.name}.part-{os.getpid()}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(part / "checkpoints", kind=recipe.kind)
        parts = sorted({name.partition("/")[0] for name in arrays})
        # What training needs to resume (optimizer, position) is missing, and not made up.
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


# === Export ===


@dataclass(frozen=True)
class Exported:
    """What was exported, and where to."""

    path: Path
    names: Names
    tensors: int
    left_out: tuple[str, ...]  # names of tensors that this naming has no place for


def export_weights(
    source: Path | str, to: Path | str, *, names: Names | None = None, best: bool = False
) -> Exported:
    """Write weights as a file for PyTorch (.pth.tar, .pth, .pt) or as .safetensors.

    Args:
        source: a run folder, a checkpoint, or any file that can be imported.
        to: a new file.
        names: `swav`: as in the released SwAV, with head and prototypes; `torchvision`: a ResNet alone, the
            classifier of a probe or fine-tuning run as `fc`; `swav_tf`: native names and layout. None:
            `swav_tf` for safetensors, else `swav`.
        best: use the best validated epoch of a probe or fine-tuning run, not its newest checkpoint.

    Raises:
        UsageError: the file exists, has another ending, or the names have no place for the weights.
        WeightsError, CheckpointError: the source is damaged or of an unknown format.
    """
    source, to = Path(source), Path(to)
    as_torch_file = to.name.endswith(TORCH_ENDINGS)
    if not as_torch_file and to.suffix != ".safetensors":
        raise UsageError(
            f"--output must end in .safetensors or, for PyTorch, in {', '.join(TORCH_ENDINGS)}. Received: {to}."
        )
    if to.exists():
        raise UsageError(
            f"--output must be a new file: nothing is overwritten. Received: {to}, which exists."
        )
    names = names or ("swav" if as_torch_file else "swav_tf")
    if names == "swav_tf" and as_torch_file:
        raise UsageError("--to swav_tf is only for .safetensors: PyTorch uses other layouts.")
    if best:
        source = CheckpointStore(source / "checkpoints", kind="").path(best_step(source))
    own = read_own(source) if names == "swav_tf" else None
    if own is not None:  # unchanged: it may have a backbone that PyTorch has no names for
        if broken := [name for name, array in own.arrays.items() if not np.isfinite(array).all()]:
            raise WeightsError(
                f"{source} must contain finite numbers: use an earlier checkpoint. Received others in:\n  "
                + "\n  ".join(broken)
            )
        _write_own(to, own, own.arrays)
        return Exported(to, names, len(own.arrays), ())
    found = open_weights(source)
    fitted = fit(found, source)
    if names == "swav_tf":
        arrays = fitted.by_own_names()
        _write_own(to, found, arrays)
        return Exported(to, names, len(arrays), fitted.left_out)
    arrays, left_out = _swav(fitted, source) if names == "swav" else _torchvision(fitted, source)
    arrays = _with_counters(arrays, found.step)
    if as_torch_file:
        write_torch_file(arrays, to)
        _check_normalization(found, source, fitted.sizes, arrays, to)
    else:
        write_safetensors(arrays, to, {"format": "pt", **metadata_of(found)})
    return Exported(to, names, len(arrays), fitted.left_out + left_out)


def _write_own(
    to: Path, weights: Weights, arrays: Mapping[str, np.ndarray], origin: Mapping[str, str] | None = None
) -> None:
    write_safetensors(arrays, to, {**(origin or {}), **metadata_of(weights)})


def _check_normalization(
    found: Weights, source: Path, sizes: Sizes, arrays: Mapping[str, np.ndarray], to: Path
) -> None:
    """Warn if an import of a file for PyTorch, which has no place for them, takes another mean and deviation."""
    assumed, mean, std = recognize(arrays, str(to)), found.mean, found.std
    if std is None:
        needs = "needs -o 'augment.mean=[R, G, B]' -o 'augment.std=[R, G, B]'"
        takes = f"takes {[*assumed.mean]} and {[*assumed.std]}" if assumed.std is not None else needs
        log.warning(
            f"{source} does not record the mean and standard deviation used to normalize its images, and {to} has no "
            f"place for them: an import {takes}."
        )
        return
    if (tuple(mean), tuple(std)) == (assumed.mean, assumed.std):
        return
    remedy = "Export to .safetensors, which keeps them"
    if sizes.classes is None:
        remedy += f", or import with -o 'augment.mean={[*mean]}' -o 'augment.std={[*std]}'"
    log.warning(
        f"{to} has no place for the mean {[*mean]} and standard deviation {[*std]} that images are normalized by. "
        f"An import takes {[*assumed.mean]} and {[*(assumed.std or ())]} instead. {remedy}."
    )


def _swav(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return backbone, head and prototypes as released; or a classifier alone, as the released linear probe."""
    sizes = fitted.sizes
    complete = sizes.network is not None and sizes.head is not None and sizes.classes is None
    if not complete and not (sizes.network is None and sizes.classes is not None):
        raise UsageError(
            f"The names of the released SwAV are for a backbone with head and prototypes. {source} has: {sizes}. "
            "Use --to torchvision."
        )
    return {f"module.{name}": array for name, array in fitted.by_torch_names().items()}, ()


def _torchvision(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the backbone, and a classifier as `fc`."""
    if fitted.sizes.network is None:
        raise UsageError(f"torchvision's names are for a backbone. {source} has: {fitted.sizes}.")
    arrays = fitted.by_torch_names()
    head = tuple(name for name in arrays if name.startswith(("projection_head.", "prototypes.")))
    return {name.replace("linear.", "fc."): array for name, array in arrays.items() if name not in head}, head


def _with_counters(arrays: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """Add the counter of training steps that PyTorch keeps next to each running variance."""
    complete: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        complete[name] = array
        if name.endswith("running_var"):
            complete[name.replace("running_var", "num_batches_tracked")] = np.asarray(step, np.int64)
    return complete
