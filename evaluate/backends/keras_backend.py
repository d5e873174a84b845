"""A pretraining run by Keras. TensorFlow loads when a backend is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.backend import Backend, ModelIdentity
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import Checkpoint, CheckpointStore
from swav_tf.runs.model_facts import read_pretraining_recipe


def newest_checkpoint(run_dir: Path) -> tuple[Recipe, CheckpointStore, int]:
    """Return the recipe of a pretraining run, its checkpoints and the step of the newest, without TensorFlow.

    A damaged one counts, and is an error when it is read: features of an older one would pass for the newest's.
    """
    # Before the checkpoint: a probe gets a clearer error than that of a checkpoint of the wrong kind.
    recipe = read_pretraining_recipe(run_dir)
    store = CheckpointStore(run_dir / "checkpoints", kind="pretrain")
    if not store.steps():
        raise UsageError(f"{run_dir} has no checkpoint yet. Wait for `swav-tf pretrain` to write one.")
    return recipe, store, store.steps()[-1]


class KerasBackend(Backend):
    """The newest checkpoint of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        recipe, store, step = newest_checkpoint(run_dir)
        checkpoint = Checkpoint(step, {}, store.facts(step), store.path(step))  # `load_swav` reads the arrays
        import tensorflow as tf

        from swav_tf.training.build import load_swav, parts_of

        # An imported backbone has no head; scores of a random one would mean nothing.
        has_head = len(parts_of(checkpoint)) > 1
        model, _ = load_swav(run_dir, step=step, backbone_only=not has_head)
        self.input_view, self.data = recipe.data.evaluation, recipe.data
        self.outputs = ("features", "projections", "scores") if has_head else ("features",)
        self.feature_dim = int(model.backbone.output_shape[-1])
        self.facts = ModelIdentity(
            path=str(run_dir),
            runner="keras",
            weights_sha256=checkpoint.facts["sha256"],
            step=step,
            recipe=recipe.name,
        )

        def compute(images: Any) -> tuple[Any, ...]:
            features = model.features(images)
            return (features, *model.project(features)) if has_head else (features,)

        self._compute = tf.function(compute, autograph=False, reduce_retracing=True)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: out.numpy() for name, out in zip(self.outputs, self._compute(images), strict=True)}
