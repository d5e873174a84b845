"""Half precision and int8: what is in lower precision, what is not, and the sweep."""

from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization.calibrate import TensorData

from export.precision import calibrate, quantize_within, to_fp16, to_int8
from export.staging import ExportError
from tests.export.edits import operators


@pytest.fixture(scope="session")
def graph(everything):
    return onnx.load(everything / "model-fp32.onnx")


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def made_by(model):
    return {output: node for node in model.graph.node for output in node.output}


def in_int8(model):
    maker = made_by(model)
    return {node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in maker}


def weight_types(model, op_type):
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {types[node.input[1]] for node in model.graph.node if node.op_type == op_type}


# Bugs caught: a file called fp16 whose convolutions are float32; head or prototypes in half precision; casts
# between nodes that both stay in float32; inputs or outputs of another type than in fp32.
def test_fp16_is_fp16(graph):
    half = to_fp16(graph)
    assert weight_types(half, "Conv") == {TensorProto.FLOAT16}
    assert weight_types(half, "MatMul") == {TensorProto.FLOAT}
    assert operators(half)["Cast"] == operators(graph)["Cast"] + 2  # into the backbone and out of it
    types = [value.type.tensor_type.elem_type for value in [*half.graph.input, *half.graph.output]]
    assert types == [TensorProto.UINT8, *[TensorProto.FLOAT] * 3]
    assert weight_types(graph, "Conv") == {TensorProto.FLOAT}  # the original is untouched


# Bug caught: a weight that becomes infinite without a word.
def test_fp16_refuses_weights_beyond_its_range(graph):
    model = deepcopy(graph)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e8), name))
    with pytest.raises(ExportError, match="within 65504 for fp16"):
        to_fp16(model)


# Bugs caught: convolutions left in float32, one scale for all channels, signed activations, a quantized head.
def test_int8_is_int8(graph, images, capsys):
    quantized = to_int8(graph, calibrate(graph, images[:16]))
    assert capsys.readouterr().out == ""
    maker = made_by(quantized)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    convolutions = [node for node in quantized.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 6
    for node in convolutions:
        activation, weight = maker[node.input[0]], maker[node.input[1]]
        assert {activation.op_type, weight.op_type} == {"DequantizeLinear"}
        assert values[activation.input[2]].dtype == np.uint8
        stored = values[weight.input[0]]
        assert stored.dtype == np.int8
        assert values[weight.input[1]].shape == (len(stored),)
    for node in quantized.graph.node:
        if node.op_type == "MatMul":
            assert values[node.input[1]].dtype == np.float32


# Bugs caught: a sweep that keeps other convolutions than those that hurt, or all of them. What is spoilt is the
# tensor between two convolutions: alone in int8, the one that makes it rounds it as badly as the one that reads it.
def test_the_sensitive_convolution_stays_in_float(graph, images, logged):
    ranges = calibrate(graph, images)
    [victim] = [node for node in graph.graph.node if node.op_type == "Conv" and "layer2_0_conv2" in node.name]
    data = ranges.data
    low, high = (float(np.ravel(end)[0]) for end in data[victim.input[0]].range_value)
    relu = made_by(graph)[victim.input[0]]
    neighbor = made_by(graph)[relu.input[0]]
    assert (relu.op_type, neighbor.op_type) == ("Relu", "Conv")
    data[victim.input[0]] = TensorData(lowest=np.float32(low * 300), highest=np.float32(high * 300))

    def failures_of(model):
        return [] if victim.name not in in_int8(model) else ["the limit"]

    quantized, kept = quantize_within(graph, ranges, images, failures_of=failures_of)
    # Which of the two is worse alone depends on the processor's rounding.
    assert {victim.name} <= set(kept) <= {victim.name, neighbor.name}
    assert len(in_int8(quantized)) == 6 - len(kept)
    assert "6 convolutions" in logged[0]


# Bug caught: a search that ends at 4 of 6 convolutions, the last power of 2, and claims that it tried all numbers.
def test_all_convolutions_but_one_stay_in_float(graph, images):
    ranges = calibrate(graph, images[:8])
    quantized, kept = quantize_within(
        graph, ranges, images[:8], failures_of=lambda model: ["the limit"] * (len(in_int8(model)) > 1)
    )
    assert (len(kept), len(in_int8(quantized))) == (5, 1)


# Bug caught: a file in float32 that is called int8.
def test_int8_that_nothing_makes_good_is_refused(graph, images):
    ranges = calibrate(graph, images[:8])
    with pytest.raises(ExportError, match=r"int8 misses its gate even with only one.*the limit"):
        quantize_within(graph, ranges, images, failures_of=lambda model: ["the limit"])


# Bugs caught: zero points that TensorRT refuses, one scale for all channels, int32 biases, a residual sum whose
# shortcut is not quantized, weights that are not those of the network.
def test_int8_for_tensorrt(everything, int8):
    exact, model = (onnx.load(everything / "model-fp32.onnx"), onnx.load(int8 / "model-int8-tensorrt.onnx"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    weights = {
        node.name: numpy_helper.to_array(tensor)
        for node in exact.graph.node
        for tensor in exact.graph.initializer
        if node.op_type == "Conv" and tensor.name == node.input[1]
    }
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
        if node.op_type == "Conv":
            activation, weight = maker[node.input[0]], maker[node.input[1]]
            assert maker[activation.input[0]].op_type == "QuantizeLinear"
            stored, scales = values[weight.input[0]], values[weight.input[1]]
            assert (stored.dtype, len(scales)) == (np.int8, len(stored))
            assert values[node.input[2]].dtype == np.float32
            wanted = weights[node.name].astype(np.float64)
            scales = scales.astype(np.float64).reshape(-1, 1, 1, 1)
            assert np.all(np.abs(stored * scales - wanted) <= 0.5001 * scales)
            assert np.abs(stored).reshape(len(stored), -1).max(axis=1).tolist() == [127] * len(stored)
    sums = [node for node in model.graph.node if node.op_type == "Add" and "_add" in node.name]
    operands = [{maker[name].op_type for name in node.input} for node in sums]
    assert operands == [{"DequantizeLinear", "Conv"}] * 2
    # A tensor that two convolutions read has one pair.
    assert operators(model)["QuantizeLinear"] == 6
