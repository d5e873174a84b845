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
from swav_tf.recipe import Recipe
from swav_tf.recipe_files import load_recipe, save_recipe
from swav_tf.training.checkpoint import IMPORTED, CheckpointStore
from swav_tf.weights.errors import WeightsError
from swav_tf.weights.formats import Recognised
from swav_tf.weights.layout import Sizes, Slot, problems, sizes_of, slots
from swav_tf.weights.own import write_safetensors
from swav_tf.weights.read import STD_KEY, open_weights, sha256_of
from swav_tf.weights.tensors import FLOATS, Tensor

# The recipe that an imported model's settings are taken from where none is named.
_RECIPES = {
    ("resnet50", 1): "swav_800ep",
    ("resnet50", 2): "swav_rn50w2_400ep",
    ("resnet18_32px", 1): "small_images",
    ("resnet_small", 1): "demo",
}
_BACKBONE = ("conv1.", "bn1.", "layer")


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
    recipe: Recipe | None


@dataclass(frozen=True)
class Fitted:
    """Tensors that are known to be all that their model has, no more and no less."""

    sizes: Sizes
    tensors: Mapping[str, Tensor]
    slots: tuple[Slot, ...]
    left_out: tuple[str, ...]

    def own_arrays(self, source: Path) -> dict[str, np.ndarray]:
        """Float32 arrays by our names and in our layout.

        Raises:
            WeightsError: some are not finite; all of them are listed.
        """
        arrays = {slot.own: slot.to_own(self.tensors[slot.torch].float32()) for slot in self.slots}
        broken = [slot.torch for slot in self.slots if not np.isfinite(arrays[slot.own]).all()]
        if broken:
            raise WeightsError(
                f"{source} has numbers that are not finite in {len(broken)} tensors:\n  "
                + "\n  ".join(broken)
            )
        return arrays


def fit(found: Recognised, source: Path, *, backbone_only: bool = False) -> Fitted:
    """Holds a file's tensors against those of the model that its shapes tell.

    Args:
        found: the file.
        source: its name, for messages.
        backbone_only: take the backbone, whatever else there is or is missing.

    Raises:
        WeightsError: tensors are missing, left over or misshapen; all of them are listed.
    """
    tensors, left_out = found.tensors, found.left_out
    if backbone_only:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)}
        left_out += tuple(tensor.name for name, tensor in found.tensors.items() if name not in tensors)
        if not tensors:
            raise WeightsError(f"{source} ({found.format}) has no backbone.")
    sizes, wanted, wrong = wrong_with(tensors)
    if wrong:
        advice = "" if backbone_only else "\nTo take the backbone alone: --backbone-only."
        raise WeightsError(
            f"{source} ({found.format}) does not fit {sizes}:\n  " + "\n  ".join(wrong) + advice
        )
    return Fitted(sizes, tensors, wanted, left_out)


def wrong_with(tensors: Mapping[str, Tensor]) -> tuple[Sizes, tuple[Slot, ...], list[str]]:
    """The model that tensors by PyTorch's names tell, what it consists of, and what is wrong with them.

    Raises:
        WeightsError: they are no network that is known here.
    """
    sizes = sizes_of(tensors)
    matrix = tensors.get("linear.weight")
    # A classifier alone says itself how many features it takes.
    wanted = slots(sizes, feature_dim=matrix.shape[-1] if matrix is not None and matrix.shape else None)
    return sizes, wanted, problems(tensors, wanted, FLOATS)


def import_weights(
    source: Path,
    to: Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    backbone_only: bool = False,
) -> Imported:
    """Writes somebody's weights as a run folder that can be evaluated, or as a safetensors file of ours.

    Args:
        source: a file of any format that `open_weights` knows.
        to: a new folder, or a new file that ends in .safetensors.
        config: recipe of the run folder; its model becomes that of the weights.
        overrides: `path=value`, for the recipe.
        backbone_only: take the backbone, whatever else there is or is missing.

    Raises:
        UsageError: `to` exists, or the settings do not go together with the weights.
        WeightsError: the file is damaged, unsafe, of no known format, or does not fit.
        RecipeError: the recipe has errors.
    """
    as_file = to.suffix == ".safetensors"
    if to.exists() and (as_file or not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to must be new: nothing is overwritten. Received: {to}, which is there already.")
    if as_file and (config is not None or overrides):
        raise UsageError("A file has no recipe: give --config and --override with a run folder only.")
    found = open_weights(source)
    fitted = fit(found, source, backbone_only=backbone_only)
    recipe = None if as_file else _recipe(found, fitted.sizes, source, config, overrides)
    arrays = fitted.own_arrays(source)
    facts = {"file": source.name, "format": found.format, "sha256": sha256_of(source)}
    if recipe is None:
        std = {STD_KEY: json.dumps(found.std)} if found.std else {}
        write_safetensors(arrays, to, facts | std | {"step": str(found.step)})
    else:
        _write_run(to, recipe, arrays, facts)
    return Imported(to, found.format, fitted.sizes, fitted.left_out, recipe)


def _recipe(
    found: Recognised, sizes: Sizes, source: Path, config: str | None, overrides: Sequence[str]
) -> Recipe:
    """A recipe whose model is that of the weights, and whose images are normalised as theirs were."""
    if sizes.network is None or sizes.classes is not None:
        raise UsageError(
            f"A run folder of pretraining needs a backbone, and takes no classifier. {source} has: {sizes}. "
            "Give --to FILE.safetensors, or --backbone-only where there is a backbone."
        )
    model: dict[str, object] = {"model.backbone.library": "swav_tf", "model.backbone.name": sizes.network}
    model |= {"model.backbone.width": sizes.width}
    if sizes.head is not None:
        model |= {"model.head_hidden": sizes.head[0], "model.projection_dim": sizes.head[1]}
    if sizes.prototypes is not None:
        model |= {"model.prototypes": sizes.prototypes}
    defaults: dict[str, object] = {"name": f"imported {source.name}"}
    if found.std is not None:
        defaults["augment.std"] = list(found.std)
    if config is None:
        # Features of published weights are wanted as exact as they were computed.
        defaults["train.precision"] = "float32"
    wide = "swav_rn50w4_400ep" if sizes.network == "resnet50" and sizes.width > 2 else "swav_800ep"
    base = config or _RECIPES.get((sizes.network, sizes.width), wide)
    settings = [f"{key}={json.dumps(value)}" for key, value in (defaults | model).items()]
    recipe = load_recipe(base, [*settings, *overrides])
    fixed = recipe.model.model_dump()
    wrong = [
        f"{key}: must be {value}, is {got}"
        for key, value in model.items()
        if (got := _at(fixed, key)) != value
    ]
    if wrong:
        raise UsageError("The weights fix these settings; leave them out:\n  " + "\n  ".join(wrong))
    return recipe


def _at(model: Mapping[str, object], key: str) -> object:
    place: object = model
    for name in key.split(".")[1:]:
        place = place[name] if isinstance(place, Mapping) else None
    return place


def _write_run(to: Path, recipe: Recipe, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """A run folder under another name, then under its own: it is whole, or not there."""
    part = to.with_name(f".{to.name}.part-{os.getpid()}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(part / "checkpoints", kind="pretrain")
        parts = sorted({name.partition("/")[0] for name in arrays})
        # What `pretrain` needs to go on (optimiser, position) is not there, and not made up.
        store.write(0, arrays, {IMPORTED: {**facts, "parts": parts}}, keep=True)
        save_recipe(recipe, part / "config.yaml")
        part.rename(to)
    except OSError as error:
        raise WeightsError(f"{to} could not be written: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
