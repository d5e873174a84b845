"""Build the classifier of a probe or fine-tuning: on a pretrained backbone, or from its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from swav_tf.method.loss_scale import LossScale
from swav_tf.model.backbone import build_backbone
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, load_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import best_step, read_checkpoint
from swav_tf.runs.model_facts import ModelFacts
from swav_tf.training.build import dtype_policy, read_pretrained
from swav_tf.training.classifier import Classifier
from swav_tf.training.state import assign_arrays, named_variables


@dataclass(frozen=True)
class Start:
    """The backbone that a classifier is trained on."""

    recipe: Recipe  # of the pretraining: architecture, mean and std of images
    weights: Mapping[str, np.ndarray] | None  # arrays by name; None: random
    origin: dict[str, Any]  # where the weights came from, for summaries

    def build(self, recipe: ProbeRecipe | FinetuneRecipe, *, class_count: int) -> Classifier:
        """Build a classifier on this backbone, under the current strategy; it is not compiled.

        Raises:
            CheckpointError: arrays are missing or have another shape.
        """
        model = build_classifier(recipe, self.recipe, class_count)
        if self.weights is not None:
            targets = named_variables(model, ["backbone"])
            assign_arrays(targets, self.weights, what="The checkpoint does not fit its recipe")
        return model


def start_from(model: Path | str, *, from_scratch: bool = False) -> Start:
    """Read the backbone of a pretraining run, or with `from_scratch` only the architecture, also of a recipe.

    Raises:
        UsageError: no such run, or it has no checkpoint.
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
    """Build a classifier with the recipe's seed, under the current strategy; it is not compiled.

    `architecture` contains the backbone and the normalization of its images.
    """
    keras.utils.set_random_seed(recipe.train.seed)
    model = architecture.model
    # Statistics in training mode are over all replicas, even if they were not in pretraining.
    batch_norm = model.batch_norm.model_copy(update={"synchronised": True})
    with dtype_policy(recipe.train.precision):
        backbone = build_backbone(model.model_copy(update={"batch_norm": batch_norm}))
    normalization = architecture.augment if isinstance(architecture, Recipe) else architecture
    return Classifier(
        backbone=backbone,
        class_count=class_count,
        frozen=recipe.learning_rates[0] is None,
        mean=normalization.mean,
        std=normalization.std,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )


def load_classifier(
    run_dir: Path | str, *, best: bool = False
) -> tuple[Classifier, ProbeRecipe | FinetuneRecipe, ModelFacts]:
    """Load the model of a probe or fine-tuning run, its recipe and its facts.

    Its weights are the newest, or with `best` those of the epoch with the highest validation accuracy.

    Raises:
        UsageError: no such run, it has no checkpoint, or config.yaml or model.json was changed.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    run_dir = Path(run_dir)
    wanted = f"A folder of `swav-tf probe` or `swav-tf finetune` is needed. Received: {run_dir}"
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"{wanted}, without config.yaml.")
    recipe = load_any_recipe(run_dir / "config.yaml")
    if isinstance(recipe, Recipe):
        raise UsageError(f"{wanted}, a pretraining run. Its probes are often in folders below it.")
    facts = ModelFacts.read(run_dir / "model.json")
    step = best_step(run_dir) if best else None
    checkpoint = read_checkpoint(run_dir, recipe, step=step)
    model = build_classifier(recipe, facts, len(facts.class_names))
    assign_arrays(
        named_variables(model), checkpoint.arrays, what=f"{checkpoint.path} does not fit model.json"
    )
    return model, recipe, facts
