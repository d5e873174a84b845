"""Check and save ONNX models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from evaluate.backends.onnx_metadata import OnnxMetadata, WeightsFile
from swav_tf.plumbing.files import file_sha256

ONE_FILE_BYTES: Final = 2**31 - 2**20  # a protobuf ends at 2 GiB
LARGE_BYTES: Final = 1024  # weights from here on may lie in a second file
ALIGNMENT: Final = 4096  # so that they can be memory-mapped


def save_model(model: onnx.ModelProto, facts: OnnxMetadata, path: Path) -> None:
    """Writes the graph with its facts; weights beyond 2 GiB go to a second file, PATH.data.

    Args:
        model: its metadata are changed, and nothing else.
        facts: go into it.
        path: of the file, in a folder that nobody reads yet (see `filled_folder`).

    Raises:
        OSError: the disk is full or refuses.
    """
    whole = model
    if weight_bytes(model) > ONE_FILE_BYTES:
        beside = path.with_name(f"{path.name}.data")
        whole = _with_weights_in(beside, model)
        weights = WeightsFile(name=beside.name, sha256=file_sha256(beside))
        facts = facts.model_copy(update={"weights_file": weights})
    helper.set_model_props(whole, facts.as_properties())
    path.write_bytes(whole.SerializeToString())


def check(model: onnx.ModelProto) -> None:
    """ONNX's checker, types and shapes too, for a graph of any size.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: something does not fit.
    """
    onnx.checker.check_model(without_weights(model, as_inputs=True), full_check=True)


def without_weights(model: onnx.ModelProto, *, as_inputs: bool) -> onnx.ModelProto:
    """A copy without its large weights.

    Args:
        model: to copy.
        as_inputs: give them as inputs of the same type and shape, so that the graph is still whole.
    """
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy(bare, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy(bare.graph, field.name, value)
    for tensor in model.graph.initializer:
        if _bytes(tensor) < LARGE_BYTES:
            bare.graph.initializer.append(tensor)
        elif as_inputs:
            bare.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return bare


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all weights."""
    return sum(map(_bytes, model.graph.initializer))


def _with_weights_in(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Writes the large weights to a file, and gives the graph that refers to it."""
    outside = without_weights(model, as_inputs=False)
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if _bytes(tensor) < LARGE_BYTES:
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            reference = TensorProto(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": path.name, "offset": file.tell(), "length": len(tensor.raw_data)}
            for key, value in place.items():
                reference.external_data.add(key=key, value=str(value))
            outside.graph.initializer.append(reference)
            file.write(tensor.raw_data)
    return outside


def _bytes(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _copy(target: object, name: str, value: object) -> None:
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    elif hasattr(value, "extend"):
        getattr(target, name).extend(value)
    else:
        getattr(target, name).CopyFrom(value)


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
