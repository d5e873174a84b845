"""The graph out of Keras: a run's model as ONNX. The one module here that loads TensorFlow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from evaluate.onnx_metadata import Input
from export.graph_rules import OPSET, tidied
from swav_tf.errors import UsageError
from swav_tf.method.swav import SwAV
from swav_tf.model.batch_norm import BatchNorm
from swav_tf.recipe import Recipe
from swav_tf.recipe_files import load_recipe
from swav_tf.training.build import build_swav
from swav_tf.training.checkpoint import CheckpointStore
from swav_tf.training.state import named_variables

MAX_BYTES = 2**31 - 2**20  # of one ONNX file: a protobuf ends at 2 GiB


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, to be run in float32.

    Attributes:
        swav: the model.
        recipe: as it was trained.
        step: optimiser steps that it was trained for.
        weights_sha256: of the checkpoint's weights.
    """

    swav: SwAV
    recipe: Recipe
    step: int
    weights_sha256: str

    def outputs(self, images: np.ndarray, *, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Features, projections and scores of uint8 images (n, size, size, 3): Keras' own, float32."""
        found: dict[str, list[np.ndarray]] = {"features": [], "projections": [], "scores": []}
        for start in range(0, len(images), batch_size):
            features = self.swav.features(tf.constant(images[start : start + batch_size]))
            projections, scores = self.swav.project(features)
            for name, values in zip(found, (features, projections, scores), strict=True):
                found[name].append(values.numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def load_trained(run_dir: Path, *, step: int | None = None) -> TrainedModel:
    """The newest (or one) checkpoint of a run, computing in float32 whatever precision it was trained in.

    Raises:
        UsageError: there is no run or no checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"RUN must be a run folder, with config.yaml and checkpoints/. Received: {run_dir}.")
    store = CheckpointStore(run_dir / "checkpoints", kind="pretrain")
    steps = store.steps()
    if not steps:
        raise UsageError(f"{run_dir} has no checkpoint yet: let `swav-tf pretrain` write one.")
    if step is not None and step not in steps:
        raise UsageError(f"{run_dir} has checkpoints of steps {steps}. Received: step {step}.")
    checkpoint = store.read(steps[-1] if step is None else step)
    recipe = load_recipe(run_dir / "config.yaml")
    in_float32 = recipe.train.model_copy(update={"precision": "float32"})
    model = build_swav(recipe.model_copy(update={"train": in_float32}))
    for name, variable in named_variables(model).items():
        variable.assign(checkpoint.arrays[name])
    return TrainedModel(model, recipe, checkpoint.step, checkpoint.facts["sha256"])


def build_graph(
    trained: TrainedModel, *, outputs: Sequence[str], size: int | None, graph_input: Input
) -> onnx.ModelProto:
    """The float32 graph.

    Args:
        trained: the model.
        outputs: of `features`, `projections`, `scores`, in the order wanted.
        size: side of the images, pixels; None for any.
        graph_input: uint8 (batch, size, size, 3), or normalised float32 (batch, 3, size, size).

    Raises:
        UsageError: the model is too large for one file.
        ExportError: an operation has no counterpart in ONNX.
    """
    parts = [trained.swav.backbone, *([] if outputs == ["features"] else [trained.swav.head])]
    weights = sum(int(np.prod(variable.shape)) * 4 for part in parts for variable in part.weights)
    if weights > MAX_BYTES:
        raise UsageError(
            f"The weights must fit one ONNX file, {MAX_BYTES / 2**30:.2f} GiB in float32. "
            f"Received: {weights / 2**30:.2f} GiB."
        )
    import tf2onnx  # after TensorFlow, which it needs

    # Else it passes over optimisations that fail, without a word, and for that copies the graph before each.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it logs is an error in `tidied`
    spec = tf.TensorSpec((None, size, size, 3), tf.as_dtype(graph_input), name="images")
    function = tf.function(_forward(trained, outputs, graph_input), input_signature=[spec])
    model, _ = tf2onnx.convert.from_function(
        function,
        input_signature=[spec],
        opset=OPSET,
        inputs_as_nchw=["images"] if graph_input == "float32" else None,
    )
    return tidied(model, outputs=outputs)


def _forward(
    trained: TrainedModel, names: Sequence[str], graph_input: Input
) -> Callable[[Any], dict[str, Any]]:
    """Images to the outputs asked for. Constants are NumPy's: captured tensors would become inputs."""
    swav, with_head = trained.swav, set(names) != {"features"}
    head = [_affine(layer) if isinstance(layer, BatchNorm) else layer for layer in swav.head.layers[1:]]
    prototypes = swav.prototypes.kernel.numpy()

    def forward(images: Any) -> dict[str, Any]:
        normalised = swav.normalise(images) if graph_input == "uint8" else images
        found = {"features": swav.backbone(normalised, training=False)}
        if with_head:
            projections = found["features"]
            for layer in head:
                projections = layer(projections)
            found["projections"] = tf.math.l2_normalize(projections, axis=-1, epsilon=1e-24)
            found["scores"] = tf.matmul(found["projections"], prototypes)
        # A tensor that is both an output and another's input needs a node of its own to bear the name.
        return {name: tf.identity(found[name], name) for name in names}

    return forward


def _affine(layer: BatchNorm) -> Callable[[Any], Any]:
    """Batch normalisation of vectors as a product and a sum: tf2onnx cannot fold it there."""
    scale = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    shift = layer.beta.numpy() - layer.moving_mean.numpy() * scale
    return lambda x: x * scale + shift
