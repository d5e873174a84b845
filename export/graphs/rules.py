"""What every exported graph keeps to: names, operators, version. No TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import onnx
from onnx import helper

from export.errors import ExportError
from export.graphs.onnx_file import check
from export.graphs.parts import attribute
from export.graphs.simplify import simplify

OPSET: Final = 17  # 18 loses GlobalAveragePool and keeps a Transpose
IR_VERSION: Final = 8  # the opset's own; runtimes refuse files newer than they are
BATCH: Final = "batch"


def tidied(model: onnx.ModelProto, *, outputs: Sequence[str]) -> onnx.ModelProto:
    """The converter's graph with names of ours, or an error for what the converter only logs.

    Args:
        model: changed in place too.
        outputs: their names, in the order wanted.

    Raises:
        ExportError: an operator, an input or an output is not as it must be.
    """
    graph = model.graph
    _refuse_foreign_operators(graph)
    _keep_one_input(graph, "images")
    by_name = {output.name: output for output in graph.output}
    missing = [name for name in outputs if name not in by_name]
    if missing:
        raise ExportError(
            f"The graph must have the outputs {', '.join(outputs)}. Missing: {', '.join(missing)}."
        )
    del graph.output[:]
    graph.output.extend(by_name[name] for name in outputs)  # a dict's come in alphabetical order
    _pool_in_place(graph)
    simplify(graph)
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    sides = [dim for dim in graph.input[0].type.tensor_type.shape.dim[1:] if not dim.HasField("dim_value")]
    for dim, name in zip(sides, ("height", "width"), strict=False):  # none where the size is fixed
        dim.dim_param = name
    del graph.value_info[:]  # of the batch sizes that the converter saw
    model.ir_version = IR_VERSION
    model.producer_name = "swav-tf"
    check(model)
    return model


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator is used."""
    return Counter(node.op_type for node in model.graph.node)


def _refuse_foreign_operators(graph: onnx.GraphProto) -> None:
    foreign = sorted(
        {node.op_type for node in graph.node if node.domain or not onnx.defs.has(node.op_type, OPSET)}
    )
    if foreign:
        raise ExportError(
            f"Every operation of the network must exist in ONNX opset {OPSET}. Received: {', '.join(foreign)}, "
            "which TensorFlow has and ONNX has not."
        )


def _keep_one_input(graph: onnx.GraphProto, name: str) -> None:
    """Removes inputs that nothing reads; one that is read is a constant that got lost."""
    read = {used for node in graph.node for used in node.input}
    lost = [value.name for value in graph.input if value.name != name and value.name in read]
    if lost or name not in read:
        raise ExportError(
            f"The graph must read `{name}` and no other input. Received also: {', '.join(lost)}."
        )
    kept = [value for value in graph.input if value.name == name]
    del graph.input[:]
    graph.input.extend(kept)


def _pool_in_place(graph: onnx.GraphProto) -> None:
    """Transpose to NHWC and mean over height and width: the converter's form of GlobalAveragePool.

    It finds the better form only where features are the one output.
    """
    transposes = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and list(attribute(node, "perm") or ()) == [0, 2, 3, 1]
    }
    for index, node in enumerate(list(graph.node)):
        if node.op_type != "ReduceMean" or node.input[0] not in transposes:
            continue
        if list(attribute(node, "axes") or ()) != [1, 2] or attribute(node, "keepdims") != 0:
            continue
        transpose, pooled = transposes[node.input[0]], f"{node.name}_pooled"
        graph.node.remove(node)
        graph.node.insert(
            index, helper.make_node("GlobalAveragePool", [transpose.input[0]], [pooled], name=pooled)
        )
        graph.node.insert(
            index + 1,
            helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1),
        )
        if not any(transpose.output[0] in other.input for other in graph.node):
            graph.node.remove(transpose)
        return


def backbone_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from the first convolution on to `features`: what lower precision is for.

    Normalising the image, and head and prototypes (0.3 % of the arithmetic), stay in float32: half
    precision would put an error of 1e-3 on every score.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    towards_features, waiting = set(), ["features"]
    while waiting:
        name = waiting.pop()
        if name in makers and makers[name].name not in towards_features:
            towards_features.add(makers[name].name)
            waiting += makers[name].input
    after_convolution: set[str] = set()  # tensors
    names = []
    for node in model.graph.node:  # in order of computation
        if node.op_type == "Conv" or after_convolution.intersection(node.input):
            after_convolution.update(node.output)
            if node.name in towards_features:
                names.append(node.name)
    return names
