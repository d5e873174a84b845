"""Load a trained run and convert it to ONNX: the only module of this package that imports TensorFlow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
import tensorflow as tf

from evaluate.backends.onnx_metadata import Input
from export.simplify import OPSET, fold_kernels, tidied
from swav_tf.method.swav import SwAV
from swav_tf.model.batch_norm import BatchNorm
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import best_step, epoch_in_words, read_checkpoint
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.training.build import build_swav, parts_of
from swav_tf.training.classifier import Classifier, build_classifier
from swav_tf.training.state import assign_arrays, named_variables

BATCH: Final = 32  # images that Keras computes at once


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, computing in float32."""

    model: SwAV | Classifier
    recipe: Recipe | ProbeRecipe | FinetuneRecipe
    step: int  # optimizer steps of its training
    weights_sha256: str  # of the checkpoint
    class_names: tuple[str, ...] = ()  # of a classifier's logits
    backbone_only: bool = False  # head and prototypes are random, since only a backbone was imported
    epoch: str = ""  # of a classifier, whose weights these are in words; empty without validated epochs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of all outputs of the model."""
        if isinstance(self.model, Classifier):
            return ("features", "logits")
        return ("features",) if self.backbone_only else ("features", "projections", "scores")

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs for uint8 images (n, size, size, 3) in Keras, float32."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.output_names}
        for start in range(0, len(images), BATCH):
            features = self.model.features(tf.constant(images[start : start + BATCH]))
            values = [features]
            if isinstance(self.model, Classifier):
                values.append(self.model.classifier(features))
            elif not self.backbone_only:
                values += self.model.project(features)
            for name, value in zip(found, values, strict=True):
                found[name].append(value.numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def load_trained(run_dir: Path, *, step: int | None = None, best: bool = False) -> TrainedModel:
    """Load a checkpoint in float32, regardless of the precision it was trained in; see `best_step` for `best`."""
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"RUN must be a run folder, with config.yaml and checkpoints/. Received: {run_dir}.")
    recipe = load_any_recipe(run_dir / "config.yaml")
    chosen = best_step(run_dir) if best else step
    checkpoint = read_checkpoint(run_dir, recipe, step=chosen)
    train = recipe.train.model_copy(update={"precision": "float32", "accumulation_steps": 1})
    to_run = recipe.model_copy(update={"train": train})
    model: SwAV | Classifier
    class_names, epoch = tuple[str, ...](), ""
    if isinstance(to_run, Recipe):
        parts = parts_of(checkpoint)
        model = build_swav(to_run)
        model.optimizer = None  # its momentum is as large as the weights
    else:
        facts = ModelFacts.read(run_dir / NAME)
        class_names, parts = facts.class_names, Classifier.parts
        epoch = epoch_in_words(run_dir, recipe, best=best, step=step)
        model = build_classifier(to_run, facts, len(class_names))
    variables = named_variables(model, parts)
    assign_arrays(variables, checkpoint.arrays, what=f"{checkpoint.path} does not fit its recipe")
    sha256, backbone_only = checkpoint.facts["sha256"], parts == ("backbone",)
    return TrainedModel(model, recipe, checkpoint.step, sha256, class_names, backbone_only, epoch)


def keras_network(trained: TrainedModel) -> keras.Model:
    """Return the network as layers of Keras alone, from uint8 images (n, height, width, 3) to features and logits.

    The output is features (n, F), or of a classifier a dictionary of `features` and `logits`.
    """

    def of_keras(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, BatchNorm):
            return layer.__class__.from_config(layer.get_config())
        return keras.layers.BatchNormalization(
            momentum=layer.momentum, epsilon=layer.epsilon, name=layer.name, dtype=layer.dtype_policy
        )

    model = trained.model
    backbone = keras.models.clone_model(model.backbone, clone_function=of_keras)
    for copy, layer in zip(backbone.layers, model.backbone.layers, strict=True):
        copy.set_weights(layer.get_weights())
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    scale, offset = 1 / (255 * model.std), -model.mean / model.std
    normalized = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="normalize")(images)
    outputs = backbone(normalized)
    if isinstance(model, Classifier):
        classifier = keras.layers.Dense.from_config(model.classifier.get_config())
        outputs = {"features": outputs, "logits": classifier(outputs)}
        classifier.set_weights(model.classifier.get_weights())
    return keras.Model(images, outputs, name="network")


def build_graph(
    trained: TrainedModel, *, outputs: Sequence[str], size: int | None, graph_input: Input
) -> onnx.ModelProto:
    """Convert a model to an ONNX graph in float32 with these outputs, in this order.

    Its input is uint8 (batch, size, size, 3) or normalized float32 (batch, 3, size, size); a size of None is any.
    """
    import tf2onnx  # after TensorFlow, which it needs

    # Otherwise it silently skips optimizations that fail, and copies the graph before each of them.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # `tidied` raises an error for what it logs
    kernels = {f"kernel_{number}": kernel for number, kernel in enumerate(_kernels(trained, outputs))}
    signature = [tf.TensorSpec((None, size, size, 3), tf.as_dtype(graph_input), name="images")]
    signature += [tf.TensorSpec(kernel.shape, tf.float32, name=name) for name, kernel in kernels.items()]
    forward = _forward(trained, outputs, graph_input)

    def with_kernels(images: Any, *given: Any) -> dict[str, Any]:
        # Kernels are inputs, because the converter would hold ten copies of each weight.
        with keras.StatelessScope(state_mapping=list(zip(kernels.values(), given, strict=True))):
            return forward(images)

    model, _ = tf2onnx.convert.from_function(
        tf.function(with_kernels, autograph=False, input_signature=signature),
        input_signature=signature,
        opset=OPSET,
        inputs_as_nchw=["images"] if graph_input == "float32" else None,
    )
    fold_kernels(model, {name: (kernel.path, kernel.numpy) for name, kernel in kernels.items()})
    return tidied(model, outputs=outputs)


def _kernels(trained: TrainedModel, outputs: Sequence[str]) -> list[keras.Variable]:
    """Return the large weights: convolutions that only a BatchNorm of `swav_tf.model` reads, and the heads."""
    convolutions = [
        layer for layer in trained.model.backbone.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    readers = [[node.operation for node in layer._outbound_nodes] for layer in convolutions]
    found = [
        layer.kernel
        for layer, by in zip(convolutions, readers, strict=True)
        if len(by) == 1 and isinstance(by[0], BatchNorm)
    ]
    if set(outputs) == {"features"}:
        return found
    if isinstance(trained.model, Classifier):
        return [*found, trained.model.classifier.kernel]
    head = [layer.kernel for layer in trained.model.head.layers if isinstance(layer, keras.layers.Dense)]
    return [*found, *head, trained.model.prototypes.kernel]


def _forward(
    trained: TrainedModel, names: Sequence[str], graph_input: Input
) -> Callable[[Any], dict[str, Any]]:
    """Return the function from images to the requested outputs."""
    heads = _heads(trained) if set(names) != {"features"} else lambda features: {}

    def forward(images: Any) -> dict[str, Any]:
        normalized = trained.model.normalize(images) if graph_input == "uint8" else images
        features = trained.model.backbone(normalized, training=False)
        found = {"features": features, **heads(features)}
        # An output that another node reads needs a node of its own to carry the name.
        return {name: tf.identity(found[name], name) for name in names}

    return forward


def _heads(trained: TrainedModel) -> Callable[[Any], dict[str, Any]]:
    """Return the function from features to the other outputs."""
    if isinstance(trained.model, Classifier):
        classifier = trained.model.classifier
        return lambda features: {"logits": classifier(features)}
    swav = trained.model
    head = [_affine(layer) if isinstance(layer, BatchNorm) else layer for layer in swav.head.layers[1:]]

    def heads(features: Any) -> dict[str, Any]:
        projections = features
        for layer in head:
            projections = layer(projections)
        projections = tf.math.l2_normalize(projections, axis=-1, epsilon=1e-24)
        return {"projections": projections, "scores": swav.prototypes(projections)}

    return heads


def _affine(layer: BatchNorm) -> Callable[[Any], Any]:
    """Return batch normalization of vectors as a product and a sum, which tf2onnx does not fold itself.

    The constants are NumPy arrays: captured tensors would become inputs of the graph.
    """
    scale = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    shift = layer.beta.numpy() - layer.moving_mean.numpy() * scale
    return lambda x: x * scale + shift
