"""int8 of a float32 graph, for TensorRT: symmetric, S8 activations and S8 weights. No TensorFlow.

TensorRT refuses zero points other than 0, wants biases in float32, and joins a convolution with the sum of
a residual block only if the *other* operand is quantised: so the pairs stand elsewhere than for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.int8 import Ranges
from export.simplify import backbone_nodes

LARGEST = 127  # of int8, both ways


def to_int8_tensorrt(
    model: onnx.ModelProto, ranges: Ranges, *, in_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph with the convolutions of its backbone in int8, as TensorRT takes it.

    A pair of QuantizeLinear and DequantizeLinear stands before every convolution and before the
    shortcut of every residual sum; weights are stored in int8 with a scale for each output channel.

    Args:
        model: the float32 graph.
        ranges: of its activations.
        in_float: names of nodes that stay in float32.
    """
    wanted = set(backbone_nodes(model)).difference(in_float)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: (place, node) for place, node in enumerate(model.graph.node) for output in node.output}
    pairs = _Pairs(ranges)
    nodes: list[onnx.NodeProto] = []
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.name in wanted and node.op_type == "Conv":
            node.input[0] = pairs.around(node.input[0], nodes)
            node.input[1] = pairs.of_weights(weights[node.input[1]], nodes)
        elif node.name in wanted and node.op_type == "Add":
            convolved = [
                name for name in node.input
                if name in made and made[name][1].op_type == "Conv" and made[name][1].name in wanted
            ]  # fmt: skip
            if convolved:
                last = max(convolved, key=lambda name: made[name][0])
                place = 1 - list(node.input).index(last)
                node.input[place] = pairs.around(node.input[place], nodes)
        nodes.append(node)

    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    del quantised.graph.initializer[:]
    quantised.graph.initializer.extend(
        tensor for tensor in [*model.graph.initializer, *pairs.constants] if tensor.name in read
    )
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


class _Pairs:
    """QuantizeLinear and DequantizeLinear, one pair for a tensor however many read it."""

    def __init__(self, ranges: Ranges) -> None:
        self._data = ranges.values.data
        self._done: dict[str, str] = {}
        self.constants: list[onnx.TensorProto] = []

    def around(self, name: str, nodes: list[onnx.NodeProto]) -> str:
        """Appends the pair of an activation; the name of what comes out of it."""
        if name not in self._done:
            low, high = (float(np.ravel(end)[0]) for end in self._data[name].range_value)
            largest = max(abs(low), abs(high))
            scale, zero = self._scale(name, np.float32(largest / LARGEST if largest else 1.0))
            nodes.append(_node("QuantizeLinear", [name, scale, zero], f"{name}_quantised"))
            self._done[name] = self._dequantise(name, f"{name}_quantised", scale, zero, nodes)
        return self._done[name]

    def of_weights(self, tensor: onnx.TensorProto, nodes: list[onnx.NodeProto]) -> str:
        """Appends what makes floats of int8 weights (output channels, ...); the name of what comes out of it."""
        if tensor.name not in self._done:
            values = numpy_helper.to_array(tensor)
            largest = np.abs(values).reshape(len(values), -1).max(axis=1)
            scales = (np.where(largest > 0, largest, LARGEST) / LARGEST).astype(np.float32)
            rounded = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
            stored = f"{tensor.name}_int8"
            self.constants.append(
                numpy_helper.from_array(rounded.clip(-LARGEST, LARGEST).astype(np.int8), stored)
            )
            scale, zero = self._scale(tensor.name, scales)
            self._done[tensor.name] = self._dequantise(tensor.name, stored, scale, zero, nodes, axis=0)
        return self._done[tensor.name]

    def _scale(self, name: str, scale: np.ndarray | np.float32) -> tuple[str, str]:
        scales = np.asarray(scale, np.float32)
        self.constants += [
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}_zero"),
        ]
        return f"{name}_scale", f"{name}_zero"

    @staticmethod
    def _dequantise(
        name: str, source: str, scale: str, zero: str, nodes: list[onnx.NodeProto], axis: int | None = None
    ) -> str:
        nodes.append(_node("DequantizeLinear", [source, scale, zero], f"{name}_dequantised", axis))
        return f"{name}_dequantised"


def _node(operator: str, inputs: Sequence[str], output: str, axis: int | None = None) -> onnx.NodeProto:
    # An axis of None is left out.
    return helper.make_node(operator, inputs, [output], name=f"{output}_{operator}", axis=axis)
