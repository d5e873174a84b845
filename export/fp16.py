"""Convert the backbone of a float32 graph to half precision, strongly typed."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_file import check, without_weights
from export.simplify import backbone_nodes
from export.staging import ExportError

MAX_HALF: Final = float(np.finfo(np.float16).max)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its backbone in float16; inputs, outputs, head and prototypes stay float32.

    There is one cast at each border. (ONNX Runtime's converter puts two between any two nodes that it is
    configured to leave alone, so that these lose their precision all the same.)

    Raises:
        ExportError: a weight does not fit in float16.
    """
    types = _types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = set(backbone_nodes(model))
    inside = {output for node in model.graph.node if node.name in names for output in node.output}
    used_outside = {output.name for output in model.graph.output}
    used_outside |= {name for node in model.graph.node if node.name not in names for name in node.input}

    nodes: list[onnx.NodeProto] = []
    half_weights: dict[str, onnx.TensorProto] = {}
    cast_down: set[str] = set()
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        nodes.append(node)
        if node.name not in names:
            continue
        for place, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT:
                continue
            if name in weights:
                half_weights.setdefault(name, _half(weights[name]))
            elif name not in inside and name not in cast_down:
                cast_down.add(name)
                nodes.insert(len(nodes) - 1, _cast(name, _half_name(name), TensorProto.FLOAT16))
            node.input[place] = _half_name(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        for place, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT:
                continue
            node.output[place] = _half_name(name)
            if name in used_outside:
                nodes.append(_cast(_half_name(name), name, TensorProto.FLOAT))

    half = without_weights(model, as_inputs=False)
    del half.graph.node[:], half.graph.initializer[:]
    half.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}  # copying only these saves memory
    half.graph.initializer.extend(tensor for name, tensor in weights.items() if name in read)
    half.graph.initializer.extend(half_weights.values())
    check(half)  # also finds types that do not fit
    return half


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(without_weights(model, as_inputs=True)).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if largest > MAX_HALF:
        raise ExportError(
            f"Weights must be within {MAX_HALF:g} for fp16. Received: {largest:g} in {tensor.name}."
        )
    return numpy_helper.from_array(values.astype(np.float16), _half_name(tensor.name))


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _half_name(name: str) -> str:
    return f"{name}_fp16"
