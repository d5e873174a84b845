"""Exported files as a bad disk leaves them, and with changes made on purpose."""

import json
from collections import Counter

import onnx

from evaluate.backends.onnx_metadata import KEY


def flip_a_weight(path):
    """Flip one bit in the middle of the largest weight: the graph still opens and runs."""
    largest = max(onnx.load(path).graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = bytearray(path.read_bytes())
    data[data.index(largest.raw_data) + len(largest.raw_data) // 2] ^= 1
    path.write_bytes(data)


def edit(path, change, target=None):
    """Write a changed model to `target`, or in its own place without the checksums of its export."""
    model = onnx.load(path)
    change(model)
    (target or path).write_bytes(model.SerializeToString())
    if target is None:
        (path.parent / "parity.json").unlink(missing_ok=True)
    return target or path


def edit_facts(model, **facts):
    """Change metadata of a model in place."""
    [entry] = [entry for entry in model.metadata_props if entry.key == KEY]
    entry.value = json.dumps({**json.loads(entry.value), **facts})


def operators(model):
    """Count the nodes by operator."""
    return Counter(node.op_type for node in model.graph.node)
