"""The float32 graph: what is in it, and that it computes what Keras computes."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf

from export.graph import TrainedModel, build_graph
from export.simplify import backbone_nodes, fold_kernels, tidied
from export.staging import ExportError
from swav_tf.training.build import build_swav
from tests.export.edits import operators
from tests.swav_models import tiny_recipe

ALL = ["scores", "features", "projections"]  # neither Keras' order nor the alphabet's


def trained(**backbone):
    """A model with generic running averages, as only training makes them."""
    recipe = tiny_recipe(model__backbone=backbone or {"name": "resnet_small"}, train__precision="float32")
    model = build_swav(recipe)
    draw = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "moving_mean")):
            variable.assign(draw.normal(0, 0.1, variable.shape))
    return TrainedModel(model, recipe, 0, "0" * 64)


def run(model, outputs, images):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, {"images": images}), strict=True))


def check_like_keras(source, model, outputs, *, size, graph_input="uint8"):
    onnx.checker.check_model(model, full_check=True)
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    given = images
    if graph_input == "float32":
        given = ((images / np.float32(255) - source.model.mean) / source.model.std).transpose(0, 3, 1, 2)
    found, wanted = run(model, outputs, given), source.outputs(images)
    for name in outputs:
        assert found[name].dtype == np.float32
        assert np.linalg.norm(wanted[name]) > 0
        assert np.linalg.norm(found[name] - wanted[name]) <= 1e-5 * np.linalg.norm(wanted[name])


# Bugs caught: batch normalization left in the graph, pooling as a reduction, a transpose, names of the converter, a batch
# of fixed size, a version that runtimes refuse, images that are 1x1 in the last stage. (tests/golden has ResNet-50.)
@pytest.mark.parametrize("size", [64, 32])
def test_a_resnet_with_float_input(size):
    source = trained(name="resnet18")
    model = build_graph(source, outputs=["features"], size=size, graph_input="float32")
    found = operators(model)
    assert (found["Conv"], found["GlobalAveragePool"]) == (20, 1)
    assert not {"Transpose", "BatchNormalization", "Reshape"} & found.keys()
    assert model.ir_version == 8
    assert {(opset.domain, opset.version) for opset in model.opset_import} >= {("", 17)}
    [image], [features] = model.graph.input, model.graph.output
    assert (image.name, features.name) == ("images", "features")
    assert dims(image) == ["batch", 3, size, size]
    assert dims(features) == ["batch", source.model.backbone.output_shape[-1]]
    check_like_keras(source, model, ["features"], size=size, graph_input="float32")


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


# Bugs caught: a network that converts and computes something else; widths; batch normalisation before convolutions.
@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "resnet_small", "width": 2},
        {
            "library": "keras_cv",
            "name": "DenseNetBackbone",
            "arguments": {"stackwise_num_repeats": [2, 2, 2], "growth_rate": 8, "compression_ratio": 0.5},
        },
        {
            "library": "keras_cv",
            "name": "CSPDarkNetBackbone",
            "arguments": {
                "stackwise_channels": [16, 32, 32, 48],
                "stackwise_depth": [1, 1, 1, 1],
                "use_depthwise": True,
            },
        },
    ],
    ids=["width 2", "DenseNet", "CSPDarkNet"],
)
def test_other_networks(backbone):
    source = trained(**backbone)
    model = build_graph(source, outputs=["features"], size=48, graph_input="uint8")
    check_like_keras(source, model, ["features"], size=48)


# Bugs caught: outputs in alphabetical order, a head with its batch normalisation in training mode, projections that
# are not of length 1, a second transpose where features are read by the head too, a fixed size where any was asked for.
@pytest.mark.parametrize("size", [32, None])
def test_all_outputs(size):
    source = trained()
    model = build_graph(source, outputs=ALL, size=size, graph_input="uint8")
    assert [output.name for output in model.graph.output] == ALL
    assert dims(model.graph.input[0]) == (["batch", 32, 32, 3] if size else ["batch", "height", "width", 3])
    found = operators(model)
    assert (found["Transpose"], found["ReduceMean"], found["BatchNormalization"]) == (1, 0, 0)
    check_like_keras(source, model, ALL, size=size or 40)


# Bug caught: normalisation, head or prototypes counted as backbone, and so made inexact.
def test_backbone_nodes():
    model = build_graph(trained(), outputs=ALL, size=32, graph_input="uint8")
    names = set(backbone_nodes(model))
    inside = [node.op_type for node in model.graph.node if node.name in names]
    assert inside[0] == "Conv"
    assert inside[-2:] == ["GlobalAveragePool", "Flatten"]
    assert set(inside) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten"}


def stand_in(backbone):
    backbone.layers = []
    swav = SimpleNamespace(backbone=backbone, normalize=lambda images: tf.cast(images, tf.float32))
    return TrainedModel(swav, tiny_recipe(), 0, "0" * 64)


# Bug caught: the converter's broken file, which it only logs about.
def test_an_operation_that_onnx_lacks():
    def backbone(images, training):
        return tf.reduce_mean(tf.image.resize(images, (8, 8), antialias=True), axis=(1, 2))

    with pytest.raises(ExportError, match="ScaleAndTranslate, which exist only in TensorFlow"):
        build_graph(stand_in(backbone), outputs=["features"], size=32, graph_input="uint8")


# Bug caught: a tensor captured from outside that becomes a second input of the file.
def test_a_captured_tensor():
    scale = tf.constant(np.random.default_rng(0).normal(size=(32, 32, 3)), tf.float32)

    def backbone(images, training):
        return tf.reduce_mean(images * scale, axis=(1, 2))

    with pytest.raises(ExportError, match="must read `images` and no other input"):
        build_graph(stand_in(backbone), outputs=["features"], size=32, graph_input="uint8")


def small_graph(nodes, *, inputs):
    floats = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(name, floats, shape) for name, shape in inputs.items()]
    weights = [
        onnx.numpy_helper.from_array(np.ones(4, np.float32), name)
        for name in ("gamma", "beta", "mean", "variance")
    ]
    features = onnx.helper.make_tensor_value_info("features", floats, ["n", 4, 8, 8])
    graph = onnx.helper.make_graph(nodes, "small", values, [features], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


# Bug caught: an input that nothing reads and that a server would have to be given.
def test_dead_inputs_go():
    relu = onnx.helper.make_node("Relu", ["images"], ["features"], name="relu")
    model = small_graph([relu], inputs={"dead": [3], "images": ["n", 4, 8, 8], "dead too": []})
    assert [value.name for value in tidied(model, outputs=["features"]).graph.input] == ["images"]


# Bugs caught: epsilon or a running average that is passed over, a layout that is guessed, a form of the converter's that is
# not known and folded all the same.
def test_folding():
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(3, 3, 4, 4)).astype(np.float32)
    gamma, beta, mean = draw.normal(size=(3, 4))
    variance = draw.uniform(0.001, 1, 4)
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["kernel"], ["k"], name="t", perm=[3, 2, 0, 1]),
        make("Conv", ["images", "k"], ["c"], name="c", pads=[1, 1, 1, 1]),
        make(
            "BatchNormalization",
            ["c", "gamma", "beta", "mean", "variance"],
            ["features"],
            name="b",
            epsilon=0.01,
        ),
    ]
    inputs = {"images": ["n", 4, 8, 8], "kernel": [3, 3, 4, 4]}
    model = small_graph(nodes, inputs=inputs)
    for tensor, values in zip(model.graph.initializer, (gamma, beta, mean, variance), strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    images = draw.normal(size=(2, 4, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [wanted] = session.run(["features"], {"images": images, "kernel": kernel})
    fold_kernels(model, {"kernel": ("conv/kernel", lambda: kernel)})
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert [tensor.name for tensor in model.graph.initializer] == ["conv/kernel", "conv/bias"]
    found = run(tidied(model, outputs=["features"]), ["features"], images)["features"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())

    with_relu = [nodes[0], nodes[1], make("Relu", ["c"], ["features"], name="r")]
    with pytest.raises(ExportError, match="one Transpose and one Conv into one BatchNormalization"):
        fold_kernels(small_graph(with_relu, inputs=inputs), {"kernel": ("conv/kernel", lambda: kernel)})
