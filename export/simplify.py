"""Fold, simplify and check the converter's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_file import check, without_weights
from export.staging import ExportError

OPSET: Final = 17  # 18 loses GlobalAveragePool and keeps a Transpose
IR_VERSION: Final = 8  # the opset's own; runtimes refuse newer files
KERNEL_LAYOUT: Final = [3, 2, 0, 1]  # (height, width, in, out) to (out, in, height, width)


def tidied(model: onnx.ModelProto, *, outputs: Sequence[str]) -> onnx.ModelProto:
    """Clean the converter's graph in place: inputs, outputs in this order, names of dimensions, versions."""
    graph = model.graph
    _check_operators(graph)
    _keep_one_input(graph, "images")
    by_name = {output.name: output for output in graph.output}
    del graph.output[:]
    graph.output.extend(by_name[name] for name in outputs)  # those of a dict are in alphabetical order
    _pool_in_place(graph)
    simplify(graph)
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    sides = [dim for dim in graph.input[0].type.tensor_type.shape.dim[1:] if not dim.HasField("dim_value")]
    for dim, name in zip(sides, ("height", "width"), strict=False):  # none where the size is fixed
        dim.dim_param = name
    del graph.value_info[:]  # of the batch sizes that the converter saw
    model.ir_version = IR_VERSION
    check(model)
    return model


def _check_operators(graph: onnx.GraphProto) -> None:
    foreign = sorted(
        {node.op_type for node in graph.node if node.domain or not onnx.defs.has(node.op_type, OPSET)}
    )
    if foreign:
        raise ExportError(
            f"Every operation of the network must exist in ONNX opset {OPSET}. Received: {', '.join(foreign)}, "
            "which exist only in TensorFlow."
        )


def _keep_one_input(graph: onnx.GraphProto, name: str) -> None:
    """Remove inputs that no node reads. Another input that is read is a captured tensor."""
    read = {used for node in graph.node for used in node.input}
    lost = [value.name for value in graph.input if value.name != name and value.name in read]
    if lost or name not in read:
        raise ExportError(
            f"The graph must read `{name}` and no other input. It also reads: {', '.join(lost)}."
        )
    keep(graph.input, lambda value: value.name == name)


def _pool_in_place(graph: onnx.GraphProto) -> None:
    """Replace a transpose to NHWC and a mean over height and width by GlobalAveragePool.

    The converter finds this form itself only where features are the only output.
    """
    transposes = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and list(attribute(node, "perm") or ()) == [0, 2, 3, 1]
    }
    for index, node in enumerate(graph.node):
        if node.op_type != "ReduceMean" or node.input[0] not in transposes:
            continue
        if list(attribute(node, "axes") or ()) != [1, 2] or attribute(node, "keepdims") != 0:
            continue
        transpose, pooled = transposes[node.input[0]], f"{node.name}_pooled"
        pool = helper.make_node("GlobalAveragePool", [transpose.input[0]], [pooled], name=pooled)
        flatten = helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1)
        graph.node.remove(node)
        graph.node.insert(index, pool)
        graph.node.insert(index + 1, flatten)
        if not _readers(graph, transpose.output[0]):
            graph.node.remove(transpose)
        return


def backbone_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes from the first convolution to `features`: those for lower precision.

    Normalization of the image, head and prototypes (0.3 % of the arithmetic) stay in float32: half
    precision would put an error of 1e-3 on every score.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    before_features, waiting = set(), ["features"]
    while waiting:
        name = waiting.pop()
        if name in producers and producers[name].name not in before_features:
            before_features.add(producers[name].name)
            waiting += producers[name].input
    after_convolution: set[str] = set()  # tensors
    names = []
    for node in model.graph.node:  # in order of computation
        if node.op_type == "Conv" or after_convolution.intersection(node.input):
            after_convolution.update(node.output)
            if node.name in before_features:
                names.append(node.name)
    return names


def fold_kernels(model: onnx.ModelProto, kernels: Mapping[str, tuple[str, Callable[[], np.ndarray]]]) -> None:
    """Replace inputs that represent kernels by weights, one at a time, in place.

    The kernel of a convolution must pass one transpose, and the convolution one batch normalization, which is
    folded into kernel and bias.

    Args:
        model: the converter's graph.
        kernels: by name of the input: the name of the weight, and a function that returns its value
            (height, width, in, out), or (in, out) of a dense layer, float32.
    """
    graph = model.graph
    _drop_identity_reshapes(model)
    values = {tensor.name: tensor for tensor in graph.initializer}
    folded: set[str] = set()  # names of nodes
    for given, (name, value) in kernels.items():
        dense = [node for node in _readers(graph, given) if node.op_type == "MatMul"]
        for node in dense:
            node.input[list(node.input).index(given)] = name
        if dense:
            _add_weight(graph, name, value())
            continue
        chain = _chain(graph, given, ("Transpose", "Conv", "BatchNormalization"))
        if (
            not chain
            or list(chain[1].input[1:]) != [chain[0].output[0]]  # it has a bias
            or list(attribute(chain[0], "perm") or ()) != KERNEL_LAYOUT
        ):
            raise ExportError(
                f"`{given}` must pass one Transpose and one Conv into one BatchNormalization. tf2onnx built a "
                "different graph. Omit --size, and install the version of tf2onnx in constraints.txt."
            )
        transpose, convolution, norm = chain
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
        folded |= {transpose.name, norm.name}
    keep(graph.node, lambda node: node.name not in folded)
    keep(graph.input, lambda value: value.name not in kernels)
    keep_read_weights(graph)


def _drop_identity_reshapes(model: onnx.ModelProto) -> None:
    """Remove reshapes after convolutions that change nothing: the converter's transposes of 1x1 images."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(without_weights(model, as_inputs=True)).graph.value_info
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred}
    for node in list(graph.node):
        target = _constant(graph, node.input[1]) if node.op_type == "Reshape" else None
        if target is None or len(target) != 4 or list(target[1:]) != shapes.get(node.input[0], [])[1:]:
            continue
        for reader in _readers(graph, node.output[0]):
            reader.input[list(reader.input).index(node.output[0])] = node.input[0]
        graph.node.remove(node)


def _add_weight(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    tensor = graph.initializer.add()  # in place: `append` would copy it
    tensor.name, tensor.data_type = name, TensorProto.FLOAT
    tensor.dims.extend(value.shape)
    tensor.raw_data = value.tobytes()


def simplify(graph: onnx.GraphProto) -> None:
    """Apply the rewrites below in place, where the graph has the form that they expect."""
    _normalize_rows(graph)
    _pad_in_the_pool(graph)
    keep_read_weights(graph)


def _normalize_rows(graph: onnx.GraphProto) -> None:
    """Normalize complete rows, by one product and one difference.

    With one constant for each of three interleaved channels, runtimes step through an image by threes; with
    the constants of a row, by long vectors. It took 7 % of an int8 ResNet-50. The length of a row must be known.
    """
    sides = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or sides[2] < 1 or sides[3] != 3:
        return
    chain = _chain(graph, graph.input[0].name, ("Cast", "Mul", "Sub", "Mul"))
    if chain and not any(output.name == chain[3].output[0] for output in graph.output):
        _replace_normalization(graph, chain, width=sides[2])


def _replace_normalization(graph: onnx.GraphProto, chain: Sequence[onnx.NodeProto], *, width: int) -> None:
    cast, divide, subtract, scale = chain
    constants = [_constant(graph, node.input[1]) for node in (divide, subtract, scale)]
    known = [np.broadcast_to(c.ravel(), 3) for c in constants if c is not None and c.size in (1, 3)]
    if len(known) < 3:
        return
    by, mean, by_std = known
    values: dict[str, np.ndarray] = {
        "row": np.array([0, 0, -1], np.int64),
        "factor": np.tile(by * by_std, width).astype(np.float32),
        "shift": np.tile(mean * by_std, width).astype(np.float32),
        "image": np.array([0, 0, width, 3], np.int64),
    }
    graph.initializer.extend(
        numpy_helper.from_array(array, f"normalise/{name}") for name, array in values.items()
    )
    place, source = list(graph.node).index(divide), cast.output[0]
    steps = (("Reshape", "row"), ("Mul", "factor"), ("Sub", "shift"), ("Reshape", "image"))
    for number, (kind, constant) in enumerate(steps):
        name = f"normalise/{number}_{kind}"
        target = scale.output[0] if number == 3 else f"{name}:0"
        node = helper.make_node(kind, [source, f"normalise/{constant}"], [target], name=name)
        graph.node.insert(place + number, node)
        source = target
    for node in (divide, subtract, scale):
        graph.node.remove(node)


def _pad_in_the_pool(graph: onnx.GraphProto) -> None:
    """Move zero padding after a ReLU into the pool: a zero is never greater than what a ReLU returns."""
    of_relus = {output for node in graph.node if node.op_type == "Relu" for output in node.output}
    for pad in [node for node in graph.node if node.op_type == "Pad" and node.input[0] in of_relus]:
        chain, pads = _chain(graph, pad.output[0], ["MaxPool"]), _zero_pads(graph, pad)
        if not chain or pads is None or pads[[0, 1, 4, 5]].any():
            continue
        [pool] = chain
        margins = [int(pads[place]) for place in (2, 3, 6, 7)]  # top, left, bottom, right
        padded = any(attribute(pool, "pads") or ()) or attribute(pool, "auto_pad") not in (
            None, b"NOTSET", b"VALID",
        )  # fmt: skip
        sides = [*attribute(pool, "kernel_shape")] * 2
        if padded or not all(0 <= margin < side for margin, side in zip(margins, sides, strict=True)):
            continue
        keep(pool.attribute, lambda entry: entry.name not in ("pads", "auto_pad"))
        pool.attribute.append(helper.make_attribute("pads", margins))
        pool.input[0] = pad.input[0]
        graph.node.remove(pad)


def _zero_pads(graph: onnx.GraphProto, pad: onnx.NodeProto) -> np.ndarray | None:
    """Return the margins of a Pad (begin and end of N, C, H, W) if it adds constant zeros, else None."""
    value = _constant(graph, pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    pads = _constant(graph, pad.input[1])
    if attribute(pad, "mode") not in (None, b"constant") or len(pad.input) > 3:
        return None
    if pads is None or pads.size != 8 or value is None or value.any():
        return None
    return pads


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if name in node.input]


def _chain(graph: onnx.GraphProto, name: str, kinds: Sequence[str]) -> list[onnx.NodeProto]:
    """Return nodes of these kinds, each the only reader of the one before (the first: of `name`); [] without them."""
    chain: list[onnx.NodeProto] = []
    for kind in kinds:
        readers = _readers(graph, name)
        if [node.op_type for node in readers] != [kind] or any(
            output.name == name for output in graph.output
        ):
            return []
        chain.append(readers[0])
        name = readers[0].output[0]
    return chain


def _constant(graph: onnx.GraphProto, name: str) -> np.ndarray | None:
    """Return a weight in float64, None if the tensor is computed."""
    tensor = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float64)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Return the value of a node's attribute, None if it is ONNX's default."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), None)


def keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Filter a protobuf's list in place; a copy of the weights may not fit in memory."""
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]


def keep_read_weights(graph: onnx.GraphProto) -> None:
    """Remove the weights that no node reads."""
    read = {name for node in graph.node for name in node.input}
    keep(graph.initializer, lambda tensor: tensor.name in read)
