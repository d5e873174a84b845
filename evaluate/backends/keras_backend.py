"""A pretraining run by Keras. The one module here that loads TensorFlow, when a runner is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.backend import ModelIdentity, check_images
from swav_tf.plumbing.errors import UsageError
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.model_facts import read_pretraining_recipe


class KerasRunner:
    """The newest checkpoint of a run folder (see `Runner`).

    Raises:
        UsageError: there is no run or no checkpoint, or it is a run of another kind.
        CheckpointError: the checkpoint is damaged.
    """

    name = "keras"

    def __init__(self, run_dir: Path) -> None:
        read_pretraining_recipe(run_dir)  # a probe is told from a damaged checkpoint
        store = CheckpointStore(run_dir / "checkpoints", kind="pretrain")
        if not store.steps():
            raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf pretrain` write one.")
        # Not the newest whole one: features of an older one than is there would look like the newest's.
        checkpoint = store.read(store.steps()[-1])
        import tensorflow as tf

        from swav_tf.training.build import load_swav, parts_of

        # Of an imported backbone there are features only: a random head would give meaningless scores.
        has_head = len(parts_of(checkpoint)) > 1
        model, recipe = load_swav(run_dir, step=checkpoint.step, backbone_only=not has_head)
        self.view = recipe.data.evaluation
        self.data = recipe.data
        self.feature_dim = int(model.backbone.output_shape[-1])
        self.facts = ModelIdentity(
            path=str(run_dir),
            runner=self.name,
            weights_sha256=checkpoint.facts["sha256"],
            step=checkpoint.step,
            recipe=recipe.name,
        )

        def run(images: Any) -> dict[str, Any]:
            features = model.features(images)
            if not has_head:
                return {"features": features}
            projections, scores = model.project(features)
            return {"features": features, "projections": projections, "scores": scores}

        self._run = tf.function(run, reduce_retracing=True)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features, projections and scores of a batch, as `Runner.run` has it."""
        check_images(images, self.view)
        return {name: output.numpy() for name, output in self._run(images).items()}
