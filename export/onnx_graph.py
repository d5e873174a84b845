"""The graph out of Keras: a run's model as ONNX. It loads TensorFlow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf

from evaluate.runners.onnx_metadata import Input
from export.graphs.fold import fold_kernels
from export.graphs.rules import OPSET, tidied
from export.trained import TrainedModel
from swav_tf.model.batch_norm import BatchNorm
from swav_tf.training.classifiers.classifier import Classifier


def build_graph(
    trained: TrainedModel, *, outputs: Sequence[str], size: int | None, graph_input: Input
) -> onnx.ModelProto:
    """The float32 graph.

    Args:
        trained: the model.
        outputs: of the model's `output_names`, in the order wanted.
        size: side of the images, pixels; None for any.
        graph_input: uint8 (batch, size, size, 3), or normalised float32 (batch, 3, size, size).

    Raises:
        ExportError: an operation has no counterpart in ONNX.
    """
    import tf2onnx  # after TensorFlow, which it needs

    # Else it passes over optimisations that fail, without a word, and for that copies the graph before each.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it logs is an error in `tidied`
    kernels = {f"kernel_{number}": kernel for number, kernel in enumerate(_kernels(trained, outputs))}
    signature = [tf.TensorSpec((None, size, size, 3), tf.as_dtype(graph_input), name="images")]
    signature += [tf.TensorSpec(kernel.shape, tf.float32, name=name) for name, kernel in kernels.items()]
    forward = _forward(trained, outputs, graph_input)

    def with_kernels(images: Any, *given: Any) -> dict[str, Any]:
        # Kernels as inputs: the converter would hold each of them ten times over.
        with keras.StatelessScope(state_mapping=list(zip(kernels.values(), given, strict=True))):
            return forward(images)

    model, _ = tf2onnx.convert.from_function(
        tf.function(with_kernels, input_signature=signature),
        input_signature=signature,
        opset=OPSET,
        inputs_as_nchw=["images"] if graph_input == "float32" else None,
    )
    fold_kernels(model, {name: (kernel.path, kernel.numpy) for name, kernel in kernels.items()})
    return tidied(model, outputs=outputs)


def _kernels(trained: TrainedModel, outputs: Sequence[str]) -> list[keras.Variable]:
    """All that is large: of convolutions that are followed by batch normalisation of ours, and of the heads."""
    layers = trained.backbone.layers
    ours = any(isinstance(layer, BatchNorm) for layer in layers)
    found = [layer.kernel for layer in layers if ours and isinstance(layer, keras.layers.Conv2D)]
    if set(outputs) == {"features"}:
        return found
    if isinstance(trained.model, Classifier):
        return [*found, trained.model.classifier.kernel]
    head = [layer.kernel for layer in trained.model.head.layers if isinstance(layer, keras.layers.Dense)]
    return [*found, *head, trained.model.prototypes.kernel]


def _forward(
    trained: TrainedModel, names: Sequence[str], graph_input: Input
) -> Callable[[Any], dict[str, Any]]:
    """Images to the outputs asked for."""
    heads = _heads(trained) if set(names) != {"features"} else lambda features: {}

    def forward(images: Any) -> dict[str, Any]:
        normalised = trained.model.normalise(images) if graph_input == "uint8" else images
        features = trained.backbone(normalised, training=False)
        found = {"features": features, **heads(features)}
        # A tensor that is both an output and another's input needs a node of its own to bear the name.
        return {name: tf.identity(found[name], name) for name in names}

    return forward


def _heads(trained: TrainedModel) -> Callable[[Any], dict[str, Any]]:
    """Features to all that follows from them."""
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
    """Batch normalisation of vectors as a product and a sum: tf2onnx cannot fold it there.

    The constants are NumPy's: captured tensors would become inputs.
    """
    scale = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    shift = layer.beta.numpy() - layer.moving_mean.numpy() * scale
    return lambda x: x * scale + shift
