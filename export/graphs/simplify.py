"""Rewrites that compute the same in less time. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graphs.parts import attribute, keep_read_weights


def simplify(graph: onnx.GraphProto) -> None:
    """Applies all of them, in place; a graph that has not their form stays as it is."""
    _normalise_rows(graph)
    _pad_in_the_pool(graph)
    keep_read_weights(graph)


def _normalise_rows(graph: onnx.GraphProto) -> None:
    """Normalisation of whole rows, by one product and one difference.

    With three constants for the three channels that lie beside each other, runtimes go through an image in
    steps of three numbers; with those of a row, in long ones. It took 7 % of an int8 ResNet-50. In images of
    any size the row is not known, and nothing is changed.
    """
    sides = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or sides[2] < 1 or sides[3] != 3:
        return
    for cast in list(graph.node):
        chain = [cast] if cast.op_type == "Cast" and cast.input[0] == graph.input[0].name else []
        for kind in ("Mul", "Sub", "Mul"):
            reader = _only_reader(graph, chain[-1].output[0]) if chain else None
            if reader is None or reader.op_type != kind or reader.input[0] != chain[-1].output[0]:
                break
            chain.append(reader)
        if len(chain) < 4 or any(output.name == chain[3].output[0] for output in graph.output):
            continue
        _, divide, subtract, scale = chain
        constants = [_constant(graph, node.input[1]) for node in (divide, subtract, scale)]
        known = [np.broadcast_to(c.ravel(), 3) for c in constants if c is not None and c.size in (1, 3)]
        if len(known) < 3:
            continue
        by, mean, by_std = known
        values: dict[str, np.ndarray] = {
            "row": np.array([0, 0, -1], np.int64),
            "factor": np.tile(by * by_std, sides[2]).astype(np.float32),
            "shift": np.tile(mean * by_std, sides[2]).astype(np.float32),
            "image": np.array([0, 0, sides[2], 3], np.int64),
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
        _remove(graph, (divide, subtract, scale))


def _pad_in_the_pool(graph: onnx.GraphProto) -> None:
    """Zeros around what a ReLU gave are never the greatest alone: the pool's own margin does the same."""
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        pad = _maker(graph, pool.input[0])
        if pad is None or pad.op_type != "Pad" or _only_reader(graph, pad.output[0]) != pool:
            continue
        relu = _maker(graph, pad.input[0])
        if relu is None or relu.op_type != "Relu" or attribute(pad, "mode") not in (None, b"constant"):
            continue
        value = _constant(graph, pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
        pads = _constant(graph, pad.input[1])
        if pads is None or pads.size != 8 or value is None or value.any() or len(pad.input) > 3:
            continue
        batch, channel, top, left, batch_end, channel_end, bottom, right = map(int, pads)
        kernel = attribute(pool, "kernel_shape")
        plain = not any(attribute(pool, "pads") or ()) and attribute(pool, "auto_pad") in (
            None,
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
        kept = [entry for entry in pool.attribute if entry.name not in ("pads", "auto_pad")]
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


def _remove(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        graph.node.remove(node)
