"""The recipe that imported weights of pretraining are kept with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.weights.formats import Recognised
from swav_tf.weights.layout import Sizes

# The recipe that an imported model's settings are taken from where none is named.
_RECIPES = {
    ("resnet50", 1): "swav_800ep",
    ("resnet50", 2): "swav_rn50w2_400ep",
    ("resnet18_32px", 1): "small_images",
    ("resnet_small", 1): "demo",
}


def pretraining_recipe(
    found: Recognised,
    sizes: Sizes,
    source: Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """A recipe whose model is that of the weights, and whose images are normalised as theirs were.

    Args:
        found: the file.
        sizes: of its model, which has a backbone.
        source: the file's name.
        config: recipe that the other settings are taken from; None: the bundled one of this network.
        overrides: `path=value`.

    Raises:
        UsageError: the settings do not go together with the weights; all that do not are listed.
        RecipeError: the recipe has errors.
    """
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
    base = config or _RECIPES.get((sizes.network or "", sizes.width), wide)
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
