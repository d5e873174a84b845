"""Recipes for imported weights, and what makes a linear classifier and its backbone the run folder of a probe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from swav_tf.data.labels import numbered
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import read_lines
from swav_tf.plumbing.log import log
from swav_tf.plumbing.values import flatten
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, load_recipe, load_recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.model_facts import BY_IMPORT, ModelFacts
from swav_tf.weights.files import open_weights, sha256_of
from swav_tf.weights.formats import Weights
from swav_tf.weights.layout import Fitted, Sizes, fit

# The recipe of an imported model if none is named, by network and width.
_RECIPES = {
    ("resnet50", 1): "swav_800ep",
    ("resnet50", 2): "swav_rn50w2_400ep",
    ("resnet18_32px", 1): "small_images",
    ("resnet10_32px", 1): "small_images",
    ("resnet_small", 1): "demo",
}


def pretraining_recipe(
    found: Weights, sizes: Sizes, source: Path, *, config: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return a recipe with the model of the weights and the normalization of their images.

    All other settings are those of `config` or, if it is None, of the bundled recipe for this network.

    Raises:
        UsageError: settings contradict the weights, all of them are listed; or the normalization is unknown.
    """
    model: dict[str, object] = {"model.backbone.library": "swav_tf", "model.backbone.name": sizes.network}
    model |= {"model.backbone.width": sizes.width}
    if sizes.head is not None:
        model |= {"model.head_hidden": sizes.head[0], "model.projection_dim": sizes.head[1]}
    if sizes.prototypes is not None:
        model |= {"model.prototypes": sizes.prototypes}
    defaults: dict[str, object] = {"name": f"imported {source.name}"}
    if found.std is not None:
        defaults |= {"augment.mean": found.mean, "augment.std": found.std}
    elif config is None and not any(item.startswith("augment.std") for item in overrides):
        raise UsageError(
            f"{source} does not record the mean and standard deviation used to normalize its images. Use its run "
            "folder; or import a backbone without a classifier by `swav-tf weights import ... -o 'augment.mean=[R, G, "
            "B]' -o 'augment.std=[R, G, B]'`."
        )
    if config is None:
        defaults["train.precision"] = "float32"  # so that features equal the published ones
        wide = sizes.network == "resnet50" and sizes.width > 2
        config = _RECIPES.get(
            (sizes.network or "", sizes.width), "swav_rn50w4_400ep" if wide else "swav_800ep"
        )
    settings = [f"{key}={json.dumps(value)}" for key, value in (defaults | model).items()]
    recipe = load_recipe(config, [*settings, *overrides])
    loaded = flatten({"model": recipe.model.model_dump()})
    wrong = [
        f"{key}: must be {value}, is {loaded[key]}" for key, value in model.items() if loaded[key] != value
    ]
    view = recipe.data.evaluation
    log.info(
        f"The file does not contain the view of its images: resize {view.resize}, crop {view.crop} and other settings "
        f"are those of {config}. To change it, import with -o data.evaluation.resize=N -o data.evaluation.crop=N."
    )
    if wrong:
        raise UsageError("The weights determine these settings; omit them:\n  " + "\n  ".join(wrong))
    return recipe


def classifier_run(
    found: Weights,
    fitted: Fitted,
    source: Path,
    *,
    backbone: Path | None,
    classes: Path | None,
    config: str | None,
    overrides: Sequence[str],
) -> tuple[ProbeRecipe, ModelFacts, Fitted]:
    """Return recipe, facts and backbone of a run folder for the classifier in `source`.

    The content of `source` was `found` there and is `fitted` as a complete model; for the others see `import_weights`.
    Without a `config` the recipe is the bundled one with the backbone's view of images.
    """
    base, base_fitted, base_source = _backbone_of(found, fitted, source, backbone)
    config_of_base = base_source / "config.yaml"
    pretrained = load_any_recipe(config_of_base) if config_of_base.is_file() else None
    if not isinstance(pretrained, Recipe):  # a file, or the folder of a probe or fine-tuning
        pretrained = pretraining_recipe(base, base_fitted.sizes, base_source)
    needed, given = fitted.arrays["linear.weight"].shape[1], base_fitted.sizes.feature_dim
    if needed != given:
        raise UsageError(
            f"The classifier must fit the backbone's features. {source} takes {needed}, {base_source} gives "
            f"{given}. Use the backbone that the classifier was trained on."
        )
    origin = {"weights": "imported", "file": source.name, "format": found.format, "sha256": sha256_of(source)}
    if backbone is not None:
        origin |= {"backbone": str(backbone), "backbone_sha256": sha256_of(backbone)}
    facts = ModelFacts(
        model=pretrained.model,
        mean=pretrained.augment.mean,
        std=pretrained.augment.std,
        class_names=_class_names(classes, fitted.sizes.classes or 0),
        how=BY_IMPORT,
        origin=origin,
        train_images=0,
        train_sha256="",
    )
    settings = [f"name={json.dumps(f'imported {source.name}')}"]
    if config is None:
        view = pretrained.data.evaluation
        settings += [f"data.evaluation={view.model_dump_json()}", f"crop.size={view.crop}"]
        settings += ["train.precision=float32"]
    recipe = load_recipe_of(ProbeRecipe, config or "probe", [*settings, *overrides])
    return recipe, facts, base_fitted


def _backbone_of(
    found: Weights, fitted: Fitted, source: Path, backbone: Path | None
) -> tuple[Weights, Fitted, Path]:
    if fitted.sizes.network is None and backbone is None:
        raise UsageError(
            f"A classifier needs the backbone that it was trained on. {source} has: {fitted.sizes}. Pass the backbone "
            "with `swav-tf weights import ... --backbone RUN_OR_FILE`, or import to FILE.safetensors, which needs none."
        )
    if fitted.sizes.network is not None and backbone is not None:
        raise UsageError(
            f"--backbone is for a classifier without a backbone. {source} has a backbone: {fitted.sizes}."
        )
    if backbone is None:
        return found, fitted, source
    base = open_weights(backbone)
    return base, fit(base, backbone, backbone_only=True), backbone


def _class_names(path: Path | None, count: int) -> tuple[str, ...]:
    if path is None:
        return numbered(count)
    names = tuple(read_lines(path, "--classes", UsageError))
    if len(names) != count:
        raise UsageError(
            f"--classes must name each of the classifier's {count:,} classes, one per line, in the order of its "
            f"outputs. Received: {path}, {len(names):,} names."
        )
    return names
