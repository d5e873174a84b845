"""What an export begins with: a checkpoint of a run, computing in float32. It loads TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from swav_tf.classifier_recipe import FinetuneRecipe, ProbeRecipe
from swav_tf.errors import UsageError
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Recipe
from swav_tf.recipe_files import kind_of, load_any_recipe
from swav_tf.training.build import build_swav
from swav_tf.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from swav_tf.training.classifiers.classifier import Classifier
from swav_tf.training.classifiers.classifier_folder import build_classifier
from swav_tf.training.classifiers.model_facts import ModelFacts
from swav_tf.training.load import parts_of
from swav_tf.training.run_folder import check_copy
from swav_tf.training.state import named_variables


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, to be run in float32.

    Attributes:
        model: what was trained: by pretraining, or a classifier by a probe or fine-tuning.
        recipe: as it was trained.
        step: optimiser steps that it was trained for.
        weights_sha256: of the checkpoint's weights.
        class_names: of a classifier's logits; empty for pretraining.
        backbone_only: head and prototypes are random: a backbone was imported alone.
    """

    model: SwAV | Classifier
    recipe: Recipe | ProbeRecipe | FinetuneRecipe
    step: int
    weights_sha256: str
    class_names: tuple[str, ...] = ()
    backbone_only: bool = False

    @property
    def backbone(self) -> keras.Model:
        """Normalised images to features."""
        return self.model.backbone

    @property
    def output_names(self) -> tuple[str, ...]:
        """What there is to export."""
        if isinstance(self.model, Classifier):
            return ("features", "logits")
        return ("features",) if self.backbone_only else ("features", "projections", "scores")

    def outputs(self, images: np.ndarray, *, batch_size: int = 32) -> dict[str, np.ndarray]:
        """All outputs for uint8 images (n, size, size, 3): Keras' own, float32."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.output_names}
        for start in range(0, len(images), batch_size):
            features = self.model.features(tf.constant(images[start : start + batch_size]))
            values = [features]
            if isinstance(self.model, Classifier):
                values.append(self.model.classifier(features))
            elif not self.backbone_only:
                values += self.model.project(features)
            for name, value in zip(found, values, strict=True):
                found[name].append(value.numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def load_trained(run_dir: Path, *, step: int | None = None) -> TrainedModel:
    """The newest (or one) checkpoint of a run, computing in float32 whatever precision it was trained in.

    Args:
        run_dir: folder of `swav-tf pretrain`, `probe`, `finetune` or of an import of weights.
        step: of the checkpoint; None: the newest.

    Raises:
        UsageError: there is no run or no checkpoint, or config.yaml is not what it was trained by.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"RUN must be a run folder, with config.yaml and checkpoints/. Received: {run_dir}.")
    recipe = load_any_recipe(run_dir / "config.yaml")
    kind = kind_of(recipe)
    store = CheckpointStore(run_dir / "checkpoints", kind=kind)
    steps = store.steps()
    if not steps:
        raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf {kind}` write one.")
    if step is not None and step not in steps:
        raise UsageError(f"{run_dir} has checkpoints of steps {steps}. Received: step {step}.")
    # Not the newest whole one: an older model than is there would look like the newest.
    checkpoint = store.read(steps[-1] if step is None else step)
    check_copy(run_dir / "config.yaml", recipe, checkpoint)
    train = recipe.train.model_copy(update={"precision": "float32", "accumulation_steps": 1})
    to_run = recipe.model_copy(update={"train": train})
    class_names: tuple[str, ...] = ()
    backbone_only = False
    model: SwAV | Classifier
    if isinstance(to_run, Recipe):
        model = build_swav(to_run)
        model.optimizer = None  # its momentum is as large as the weights
        backbone_only = len(parts_of(checkpoint)) == 1
    else:
        facts = ModelFacts.read(run_dir / "model.json")
        class_names = facts.class_names
        model = build_classifier(to_run, facts, len(class_names))
    _put(model, checkpoint, backbone_only=backbone_only)
    return TrainedModel(
        model, recipe, checkpoint.step, checkpoint.facts["sha256"], class_names, backbone_only
    )


def _put(model: SwAV | Classifier, checkpoint: Checkpoint, *, backbone_only: bool) -> None:
    arrays = checkpoint.arrays
    for name, variable in named_variables(model).items():
        if backbone_only and not name.startswith("backbone/"):
            continue
        if name not in arrays or arrays[name].shape != tuple(variable.shape):
            raise CheckpointError(f"{checkpoint.path} does not fit its recipe at {name}.")
        variable.assign(arrays[name])
