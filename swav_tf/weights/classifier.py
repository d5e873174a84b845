"""A linear classifier of somebody's, put on the backbone that it was trained on, as a probe's run folder has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swav_tf.data.labels import numbered
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import load_recipe, load_recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.model_facts import BY_IMPORT, ModelFacts
from swav_tf.weights.files import open_weights, sha256_of
from swav_tf.weights.fitting import Fitted, fit
from swav_tf.weights.formats import Recognised
from swav_tf.weights.layout import Sizes
from swav_tf.weights.pretraining_recipe import pretraining_recipe


@dataclass(frozen=True)
class ClassifierRun:
    """What a probe's run folder is made of.

    Attributes:
        recipe: config.yaml.
        facts: model.json.
        arrays: backbone and classifier, by our names.
        sizes: of both together.
    """

    recipe: ProbeRecipe
    facts: ModelFacts
    arrays: dict[str, np.ndarray]
    sizes: Sizes


def classifier_run(
    found: Recognised,
    fitted: Fitted,
    source: Path,
    *,
    backbone: Path | None = None,
    classes: Path | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> ClassifierRun:
    """Puts a classifier and its backbone together.

    Args:
        found: the file with the classifier; it may have the backbone too.
        fitted: the same, held against its model.
        source: its name.
        backbone: run folder of pretraining, or file, with the backbone that the classifier was trained on.
        classes: text file with the name of each class, one a line, in the order of the classifier's
            outputs; None: they are numbered from 0.
        config: recipe of a probe that the view of images is taken from; None: the backbone's view.
        overrides: `path=value`, for the recipe of the probe.

    Raises:
        UsageError: there is no backbone or one too many, or it gives another number of features than the
            classifier takes; or the list of classes does not fit.
        WeightsError: a file is damaged, or numbers in it are not finite.
        RecipeError: the recipe has errors.
    """
    sizes = fitted.sizes
    assert sizes.classes is not None
    if (sizes.network is None) == (backbone is None):
        raise UsageError(
            f"A classifier needs a backbone to be run: give --backbone RUN_OR_FILE, the weights that it was trained "
            f"on; or keep it as --to FILE.safetensors. {source} has: {sizes}."
            if backbone is None
            else f"--backbone is for a classifier alone. {source} has a backbone of its own: {sizes}."
        )
    below, fitted_below, place = found, fitted, source
    if backbone is not None:
        below, place = open_weights(backbone), backbone
        fitted_below = fit(below, backbone, backbone_only=True)
    pretrained = _recipe_of(below, fitted_below.sizes, place)
    arrays = fitted.own_arrays(source)
    feature_count, given = arrays["classifier/kernel"].shape[0], fitted_below.sizes.feature_dim
    if feature_count != given:
        raise UsageError(
            f"The classifier must take the backbone's features. {source} takes {feature_count}, {place} gives "
            f"{given}. Give the backbone that the classifier was trained on."
        )
    if backbone is not None:
        arrays |= fitted_below.own_arrays(backbone)
    origin = {"weights": "imported", "file": source.name, "format": found.format, "sha256": sha256_of(source)}
    if backbone is not None:
        origin |= {"backbone": str(backbone), "backbone_sha256": sha256_of(backbone)}
    facts = ModelFacts(
        model=pretrained.model,
        mean=pretrained.augment.mean,
        std=pretrained.augment.std,
        class_names=_class_names(classes, sizes.classes),
        how=BY_IMPORT,
        origin=origin,
        train_images=0,
        train_sha256="",
    )
    network = Sizes(fitted_below.sizes.network, fitted_below.sizes.width, classes=sizes.classes)
    return ClassifierRun(_probe_recipe(pretrained, source, config, overrides), facts, arrays, network)


def _recipe_of(found: Recognised, sizes: Sizes, source: Path) -> Recipe:
    """How the backbone was trained: its own run folder knows, of a file the format tells."""
    own = source / "config.yaml"
    if own.is_file() and sizes.classes is None:
        return load_recipe(own)
    return pretraining_recipe(found, sizes, source)


def _probe_recipe(
    pretrained: Recipe, source: Path, config: str | None, overrides: Sequence[str]
) -> ProbeRecipe:
    settings = [f"name={json.dumps(f'imported {source.name}')}"]
    if config is None:
        view = pretrained.data.evaluation
        settings += [f"data.evaluation.{side}={getattr(view, side)}" for side in ("resize", "crop")]
        settings += [f"crop.size={view.crop}", "train.precision=float32"]
    return load_recipe_of(ProbeRecipe, config or "probe", [*settings, *overrides])


def _class_names(path: Path | None, count: int) -> tuple[str, ...]:
    """The names in a file, or numbers.

    Raises:
        UsageError: the file cannot be read, or has more or fewer names.
    """
    if path is None:
        return numbered(count)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes must be a readable text file. Received: {path}: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UsageError(
            f"--classes must name each of the classifier's {count:,} classes, one a line, in the order of its "
            f"outputs. Received: {path}, {len(names):,} names."
        )
    return tuple(names)
