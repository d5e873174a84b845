"""The arithmetic of a step against the operations that TensorFlow really traces."""

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.planning.network_cost import network_cost
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe
from swav_tf.training.build import build_swav
from tests.swav_models import batches_of_crops, tiny_recipe


def macs_of(operations) -> int:
    """Products summed by all convolutions and matrix products of a graph, by the shapes of its tensors."""
    total = 0
    for op in operations:
        if not any(output.consumers() for output in op.outputs):
            continue  # the gradient of the images, which is unused: TensorFlow drops it
        if op.type == "MatMul":
            left = op.inputs[0].shape
            inner = left[0] if op.get_attr("transpose_a") else left[1]
            total += int(np.prod(op.outputs[0].shape)) * inner
        elif op.type in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
            if op.type == "Conv2D":
                large, kernel = op.outputs[0].shape, op.inputs[1].shape
            else:
                is_image = op.type == "Conv2DBackpropInput"
                large, kernel = op.inputs[2].shape, (op.inputs[1] if is_image else op.outputs[0]).shape
            total += int(np.prod(large)) * int(np.prod(kernel[:3]))
    return total


@pytest.fixture(scope="module", params=["resnet50", "resnet_small"])
def traced(request):
    """A recipe, its model, two images and the operations of their forward pass."""
    backbone = {"name": request.param, "width": 2 if request.param == "resnet_small" else 1}
    recipe = tiny_recipe(model__backbone=backbone, train__batch_size=2)
    large, small = recipe.crops
    recipe = recipe.model_copy(update={"crops": (large, small, small)})
    model = build_swav(recipe)
    [crops] = batches_of_crops(recipe, 1)
    crops = tuple(tf.constant(group) for group in crops)
    forward = tf.function(lambda: model(crops, training=True), autograph=False).get_concrete_function().graph
    return recipe, model, crops, forward.get_operations()


# Bugs caught: a stride in the wrong place (v1 for v1.5), a missing shortcut, a group of crops counted once, the
# first convolution's image gradient counted though nothing computes it.
def test_products_equal_those_that_tensorflow_traces(traced):
    recipe, model, crops, forward = traced
    cost = network_cost(recipe)
    assert cost.forward_macs == macs_of(forward) / 2
    if recipe.model.backbone.name == "resnet_small":  # a step of ResNet-50 takes long to trace
        step = tf.function(lambda: model.train_step(crops, tf.zeros([2])), autograph=False)
        operations = step.get_concrete_function().graph.get_operations()
        assert cost.image_flops / 2 == macs_of(operations) / 2  # Sinkhorn's are BatchMatMul: 6 K of a sample


def test_parameters_and_normalizations_are_the_models(traced):
    recipe, model, _, forward = traced
    cost = network_cost(recipe)
    assert cost.parameters == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert cost.averages == sum(int(np.prod(v.shape)) for v in model.non_trainable_variables)
    calls = [op for op in forward if op.type == "FusedBatchNormV3"]
    assert cost.normalizations == len(calls)
    assert cost.normalized_channels == sum(int(op.inputs[1].shape[0]) for op in calls)


# The figures of docs/performance.md.
def test_the_cost_of_the_papers_crops():
    cost = network_cost(load_recipe("swav_100ep"))
    assert cost.backbone_macs / 1e9 == pytest.approx(12.68, abs=0.005)
    backbone_flops = cost.image_flops - 6 * cost.head_macs
    assert backbone_flops / 1e9 == pytest.approx(75.3, abs=0.05)
    assert cost.head_macs / cost.backbone_macs == pytest.approx(0.0031, abs=0.0001)
    # One 224-pixel image of ResNet-50 is 4.09 GMAC; its 25.6 million parameters without the classifier's.
    single = network_cost(load_recipe("swav_100ep", ["crops=[{count: 2, size: 224, scale: [0.14, 1.0]}]"]))
    assert single.backbone_macs / 2e9 == pytest.approx(4.09, abs=0.005)


def test_an_external_network_is_refused():
    recipe = tiny_recipe(model__backbone={"library": "keras_cv", "name": "ResNet50V2Backbone"})
    with pytest.raises(UsageError, match="swav-tf profile"):
        network_cost(recipe)
