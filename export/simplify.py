"""Rewrites that compute the same in less time. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

TO_NCHW = [0, 3, 1, 2]


def simplify(graph: onnx.GraphProto) -> None:
    """Applies all of them, in place; a graph that has not their form stays as it is."""
    _normalise_by_channel(graph)
    _pad_in_the_pool(graph)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _normalise_by_channel(graph: onnx.GraphProto) -> None:
    """Channels first, then normalised by one product and one difference.

    With the channels last the constants of the three channels follow each other in every row, which no
    runtime computes well: it took 9 % of an int8 ResNet-50.
    """
    for cast in list(graph.node):
        chain = [cast] if cast.op_type == "Cast" else []
        for kind in ("Mul", "Sub", "Mul", "Transpose"):
            reader = _only_reader(graph, chain[-1].output[0]) if chain else None
            if reader is None or reader.op_type != kind or reader.input[0] != chain[-1].output[0]:
                break
            chain.append(reader)
        if len(chain) < 5 or list(_attribute(chain[4], "perm")) != TO_NCHW:
            continue
        _, divide, subtract, scale, transpose = chain
        constants = [_constant(graph, node.input[1]) for node in (divide, subtract, scale)]
        if any(constant is None or constant.size not in (1, 3) for constant in constants):
            continue
        by, mean, by_std = (
            np.broadcast_to(constant.ravel(), 3) for constant in constants if constant is not None
        )
        factor, shift = by * by_std, mean * by_std
        last = transpose.output[0]
        transpose.input[0], transpose.output[0] = cast.output[0], f"{last}_channels_first"
        names = []
        for name, values in (("factor", factor), ("shift", shift)):
            names.append(f"normalise/{name}")
            array = values.astype(np.float32).reshape(3, 1, 1)
            graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        product = helper.make_node(
            "Mul", [transpose.output[0], names[0]], [f"{last}_scaled"], name="normalise/Mul"
        )
        difference = helper.make_node("Sub", [product.output[0], names[1]], [last], name="normalise/Sub")
        place = list(graph.node).index(transpose)
        graph.node.insert(place + 1, product)
        graph.node.insert(place + 2, difference)
        _remove(graph, (divide, subtract, scale))


def _pad_in_the_pool(graph: onnx.GraphProto) -> None:
    """Zeros around what a ReLU gave are never the greatest alone: the pool's own margin does the same."""
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = _maker(graph, pool.input[0])
        if pad is None or pad.op_type != "Pad" or _only_reader(graph, pad.output[0]) != pool:
            continue
        relu = _maker(graph, pad.input[0])
        if relu is None or relu.op_type != "Relu" or _attribute(pad, "mode") not in ((), b"constant"):
            continue
        value = _constant(graph, pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
        pads = _constant(graph, pad.input[1])
        if pads is None or pads.size != 8 or value is None or value.any() or len(pad.input) > 3:
            continue
        batch, channel, top, left, batch_end, channel_end, bottom, right = map(int, pads)
        kernel = _attribute(pool, "kernel_shape")
        plain = not any(_attribute(pool, "pads")) and _attribute(pool, "auto_pad") in (
            (),
            b"NOTSET",
            b"VALID",
        )
        if any((batch, channel, batch_end, channel_end)) or not plain:
            continue
        if not all(
            0 <= margin < side
            for margin, side in zip((top, left, bottom, right), [*kernel, *kernel], strict=True)
        ):
            continue
        kept = [attribute for attribute in pool.attribute if attribute.name not in ("pads", "auto_pad")]
        del pool.attribute[:]
        pool.attribute.extend([*kept, helper.make_attribute("pads", [top, left, bottom, right])])
        pool.input[0] = pad.input[0]
        _remove(graph, (pad,))


def _only_reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """The one node that reads a tensor; None if there are more, or it is an output of the graph."""
    readers = [node for node in graph.node if name in node.input]
    outside = any(output.name == name for output in graph.output)
    return readers[0] if len(readers) == 1 and not outside else None


def _maker(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in graph.node if name in node.output), None)


def _constant(graph: onnx.GraphProto, name: str) -> np.ndarray | None:
    """Its value in float64; None if it is computed."""
    tensor = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float64)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    found: Sequence[Any] = [
        helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name
    ]
    return found[0] if found else ()


def _remove(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        graph.node.remove(node)
