"""Kernels into a graph that was converted without them, batch normalisation folded in. No TensorFlow.

The converter holds every weight some ten times over; so it never sees the large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.errors import ExportError
from export.graphs.parts import attribute, keep, keep_read_weights

KERNEL_LAYOUT = [3, 2, 0, 1]  # (height, width, in, out) to (out, in, height, width)


def fold_kernels(model: onnx.ModelProto, kernels: Mapping[str, tuple[str, Callable[[], np.ndarray]]]) -> None:
    """Turns inputs that stand for kernels into weights, one at a time.

    That of a convolution must go into one, transposed, and the convolution into one batch normalisation.

    Args:
        model: changed in place.
        kernels: by name of the input: the name that the weight gets, and what gives its value
            (height, width, in, out), or (in, out) of a dense layer, float32.

    Raises:
        ExportError: the graph has another form.
    """
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gone: set[str] = set()  # names of nodes
    for given, (name, value) in kernels.items():
        dense = [node for node in readers.get(given, ()) if node.op_type == "MatMul"]
        for node in dense:
            node.input[list(node.input).index(given)] = name
        if dense:
            _add_weight(graph, name, value())
            continue
        transpose = _only_reader(readers, given, "Transpose")
        if list(attribute(transpose, "perm") or ()) != KERNEL_LAYOUT:
            raise _foreign(given)
        convolution = _only_reader(readers, transpose.output[0], "Conv")
        norm = _only_reader(readers, convolution.output[0], "BatchNormalization")
        if list(convolution.input[1:]) != [transpose.output[0]]:
            raise _foreign(given)
        gamma, beta, mean, variance = (
            numpy_helper.to_array(values[each]).astype(np.float64) for each in norm.input[1:]
        )
        scale = gamma / np.sqrt(variance + (attribute(norm, "epsilon") or 1e-5))
        kernel = np.ascontiguousarray(value().transpose(KERNEL_LAYOUT))
        kernel *= scale.astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
        bias = f"{name.rpartition('/')[0]}/bias"
        _add_weight(graph, name, kernel)
        del kernel
        _add_weight(graph, bias, (beta - mean * scale).astype(np.float32))
        del convolution.input[1:]
        convolution.input.extend([name, bias])
        convolution.output[0] = norm.output[0]
        gone |= {transpose.name, norm.name}
    keep(graph.node, lambda node: node.name not in gone)
    keep(graph.input, lambda value: value.name not in kernels)
    keep_read_weights(graph)


def _add_weight(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    tensor = graph.initializer.add()  # in place: `append` would copy it
    tensor.name, tensor.data_type = name, TensorProto.FLOAT
    tensor.dims.extend(value.shape)
    tensor.raw_data = value.tobytes()


def _only_reader(readers: Mapping[str, list[onnx.NodeProto]], name: str, kind: str) -> onnx.NodeProto:
    found = readers.get(name, [])
    if [node.op_type for node in found] != [kind]:
        raise _foreign(name)
    return found[0]


def _foreign(name: str) -> ExportError:
    return ExportError(
        f"`{name}` must go through one Transpose and one Conv into one BatchNormalization. tf2onnx made another "
        "graph of it: install the version of tf2onnx that constraints.txt names."
    )
