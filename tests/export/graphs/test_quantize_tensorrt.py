"""int8 in the form that TensorRT takes."""

import numpy as np
import onnx
from onnx import numpy_helper

from export.simplify import operators


# Bugs caught: zero points that TensorRT refuses, one scale for all channels, int32 biases, a residual sum whose
# shortcut is not quantised, weights that are not those of the network.
def test_int8_for_tensorrt(everything, int8):
    exact, model = (
        onnx.load(everything / "model-fp32.onnx"),
        onnx.load(int8 / "model-int8-tensorrt.onnx"),
    )
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
