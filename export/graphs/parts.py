"""A node's attributes, and what is left of a graph after a change. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Its value; None if the node leaves it to ONNX's default."""
    found = [helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name]
    return found[0] if found else None


def keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Removes from a protobuf's list what is not wanted, in place: weights may be as large as the memory."""
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]


def keep_read_weights(graph: onnx.GraphProto) -> None:
    """Removes the weights that no node reads."""
    read = {name for node in graph.node for name in node.input}
    keep(graph.initializer, lambda tensor: tensor.name in read)
