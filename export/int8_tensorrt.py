"""Quantize a float32 graph to int8 for TensorRT: symmetric, S8 activations and S8 weights.

TensorRT refuses zero points other than 0, takes biases in float32, and fuses a convolution with the sum of
a residual block only if the *other* operand is quantized: so the QDQ pairs are at other places than for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.onnx_file import keep_read_weights
from export.simplify import backbone_nodes

LARGEST: Final = 127  # of int8, both ways


def to_int8_tensorrt(model: onnx.ModelProto, ranges: Any, *, in_float: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph with the convolutions of its backbone in int8, as TensorRT takes it.

    Every convolution and the shortcut of every residual sum read a pair of QuantizeLinear and
    DequantizeLinear; weights are stored in int8 with a scale for each output channel.

    Args:
        model: the float32 graph.
        ranges: of its activations, see `export.int8.calibrate`.
        in_float: names of nodes that stay in float32.
    """
    chosen = set(backbone_nodes(model)).difference(in_float)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {
        output: (place, node) for place, node in enumerate(model.graph.node) for output in node.output
    }
    pairs = _Pairs(ranges)
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.name in chosen and node.op_type == "Conv":
            node.input[0] = pairs.around(node.input[0])
            node.input[1] = pairs.of_weights(weights[node.input[1]])
        elif node.name in chosen and node.op_type == "Add":
            convolved = [
                name for name in node.input
                if name in producers and producers[name][1].op_type == "Conv" and producers[name][1].name in chosen
            ]  # fmt: skip
            if convolved:
                last = max(convolved, key=lambda name: producers[name][0])
                place = 1 - list(node.input).index(last)
                node.input[place] = pairs.around(node.input[place])
        pairs.nodes.append(node)

    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    del quantized.graph.node[:]
    quantized.graph.node.extend(pairs.nodes)
    quantized.graph.initializer.extend(pairs.constants)
    keep_read_weights(quantized.graph)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


class _Pairs:
    """Nodes and constants of QDQ pairs, one pair for each tensor.

    Attributes:
        nodes: of the new graph, in order.
        constants: weights, scales and zero points.
    """

    def __init__(self, ranges: Any) -> None:
        self._data = ranges.data
        self._done: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def around(self, name: str) -> str:
        """Append the pair of an activation and return its output."""
        if name not in self._done:
            low, high = (float(np.ravel(end)[0]) for end in self._data[name].range_value)
            largest = max(abs(low), abs(high))
            scale = self._scale(name, np.float32(largest / LARGEST if largest else 1.0))
            self._add("QuantizeLinear", [name, *scale], f"{name}_quantised")
            self._done[name] = self._dequantized(name, f"{name}_quantised", scale)
        return self._done[name]

    def of_weights(self, tensor: onnx.TensorProto) -> str:
        """Store weights (output channels, ...) in int8, append their DequantizeLinear and return its output."""
        if tensor.name not in self._done:
            values = numpy_helper.to_array(tensor)
            largest = np.abs(values).reshape(len(values), -1).max(axis=1)
            scales = (np.where(largest > 0, largest, LARGEST) / LARGEST).astype(np.float32)
            rounded = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
            stored = f"{tensor.name}_int8"
            self.constants.append(
                numpy_helper.from_array(rounded.clip(-LARGEST, LARGEST).astype(np.int8), stored)
            )
            self._done[tensor.name] = self._dequantized(
                tensor.name, stored, self._scale(tensor.name, scales), axis=0
            )
        return self._done[tensor.name]

    def _scale(self, name: str, scale: np.ndarray | np.float32) -> tuple[str, str]:
        scales = np.asarray(scale, np.float32)
        self.constants += [
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}_zero"),
        ]
        return f"{name}_scale", f"{name}_zero"

    def _dequantized(self, name: str, source: str, scale: tuple[str, str], axis: int | None = None) -> str:
        self._add("DequantizeLinear", [source, *scale], f"{name}_dequantised", axis)
        return f"{name}_dequantised"

    def _add(self, operator: str, inputs: Sequence[str], output: str, axis: int | None = None) -> None:
        # An axis of None is left out.
        node = helper.make_node(operator, inputs, [output], name=f"{output}_{operator}", axis=axis)
        self.nodes.append(node)
