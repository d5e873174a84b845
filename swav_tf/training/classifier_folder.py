"""What the folder of a probe or fine-tuning run has beside a pretraining run's: where it began, what came of it.

model.json      see model_facts.py
per_class.csv   accuracy by class             confusion.csv, confusion.png   who is taken for whom
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from swav_tf.method.loss_scale import LossScale
from swav_tf.model.backbone import build_backbone
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, load_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import CheckpointError, CheckpointStore
from swav_tf.runs.folder import check_copy
from swav_tf.runs.model_facts import ModelFacts
from swav_tf.training.build import dtype_policy, read_pretrained
from swav_tf.training.classifier import Classifier
from swav_tf.training.state import misfits, named_variables, named_variables_of
from swav_tf.training.validation import Counts, draw_confusion


@dataclass(frozen=True)
class Start:
    """Whose backbone a classifier is put on.

    Attributes:
        recipe: of the pretraining run: architecture, mean and std of images.
        weights: its arrays by name, or None for a random initialisation.
        origin: the same in words, for summaries.
    """

    recipe: Recipe
    weights: Mapping[str, np.ndarray] | None
    origin: dict[str, Any]


def start_from(model: Path | str, *, from_scratch: bool = False) -> Start:
    """The backbone of a pretraining run, or with `from_scratch` its architecture alone.

    Args:
        model: a run folder; with `from_scratch` it may be a recipe's file or name too.
        from_scratch: weights are drawn at random.

    Raises:
        UsageError: there is no such run, or it has no checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if from_scratch:
        config = Path(model) / "config.yaml"
        recipe = load_recipe(config if config.exists() else model)
        return Start(recipe, None, {"weights": "random", "recipe": recipe.name})
    checkpoint, recipe = read_pretrained(model)
    weights = {name: array for name, array in checkpoint.arrays.items() if name.startswith("backbone/")}
    origin = {
        "weights": "pretrained",
        "recipe": recipe.name,
        "run": str(model),
        "step": checkpoint.step,
        "sha256": checkpoint.facts["sha256"],
    }
    return Start(recipe, weights, origin)


def build_classifier(
    recipe: ProbeRecipe | FinetuneRecipe, architecture: Recipe | ModelFacts, class_count: int
) -> Classifier:
    """A classifier with the recipe's own seed, under the strategy in scope; not compiled.

    Args:
        recipe: says what is frozen, precision and seed.
        architecture: says which backbone, and how its images are normalised.
        class_count: number of classes.
    """
    keras.utils.set_random_seed(recipe.train.seed)
    model = architecture.model
    # In training mode the statistics are over all replicas, whatever they were in pretraining.
    batch_norm = model.batch_norm.model_copy(update={"synchronised": True})
    with dtype_policy(recipe.train.precision):
        backbone = build_backbone(model.model_copy(update={"batch_norm": batch_norm}))
    normalisation = architecture.augment if isinstance(architecture, Recipe) else architecture
    return Classifier(
        backbone=backbone,
        class_count=class_count,
        frozen=recipe.learning_rates[0] is None,
        mean=normalisation.mean,
        std=normalisation.std,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )


def put_weights(model: Classifier, weights: Mapping[str, np.ndarray]) -> None:
    """Puts a pretrained backbone's arrays in.

    Raises:
        CheckpointError: arrays are missing or of another shape; nothing is loaded then.
    """
    targets = named_variables_of("backbone", model.backbone)
    if wrong := misfits(targets, weights):
        raise CheckpointError("The checkpoint does not fit its recipe:\n  " + "\n  ".join(wrong))
    for name, variable in targets.items():
        variable.assign(weights[name])


# === Results ===


def write_results(folder: Path, counts: Counts, class_names: tuple[str, ...], title: str) -> None:
    """Writes per_class.csv, confusion.csv and confusion.png."""
    with (
        atomic_write(folder / "per_class.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["class", "images", "top1", "top5"])
        for name, images, right, top5 in zip(
            class_names, counts.images.tolist(), counts.right.tolist(), counts.top5.tolist(), strict=True
        ):
            shares = [right / images, top5 / images] if images else ["", ""]
            rows.writerow([name, images, *shares])
    with (
        atomic_write(folder / "confusion.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["true class", *class_names])
        for name, row in zip(class_names, counts.confusion.tolist(), strict=True):
            rows.writerow([name, *row])
    draw_confusion(folder / "confusion.png", counts.confusion, class_names, title=title)


def load_classifier(run_dir: Path | str) -> tuple[Classifier, ProbeRecipe | FinetuneRecipe, ModelFacts]:
    """The model of a probe or fine-tuning run with the weights of its newest checkpoint.

    Raises:
        UsageError: there is no such run, it has no checkpoint, or config.yaml is not what it was trained by.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists():
        raise UsageError(
            f"A folder of `swav-tf probe` or `swav-tf finetune` is needed. Received: {run_dir}, "
            "which holds no config.yaml."
        )
    recipe = load_any_recipe(run_dir / "config.yaml")
    if isinstance(recipe, Recipe):
        raise UsageError(
            f"A folder of `swav-tf probe` or `swav-tf finetune` is needed. Received: {run_dir}, a pretraining "
            "run, which knows no classes. Probes are usually in a folder below it."
        )
    facts = ModelFacts.read(run_dir / "model.json")
    checkpoint = CheckpointStore(run_dir / "checkpoints", kind=recipe.kind).latest()
    if checkpoint is None:
        raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf {recipe.kind}` write one.")
    check_copy(run_dir / "config.yaml", recipe, checkpoint)
    model = build_classifier(recipe, facts, len(facts.class_names))
    variables = named_variables(model)
    if wrong := misfits(variables, checkpoint.arrays):
        raise CheckpointError(f"{checkpoint.path} does not fit model.json:\n  " + "\n  ".join(wrong))
    for name, variable in variables.items():
        variable.assign(checkpoint.arrays[name])
    return model, recipe, facts
