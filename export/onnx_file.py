"""Check and save ONNX models of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from evaluate.backends.onnx_metadata import OnnxMetadata, WeightsFile
from swav_tf.plumbing.files import file_sha256
from swav_tf.plumbing.system import version_of

ONE_FILE_BYTES: Final = 2**31 - 2**20  # a protobuf ends at 2 GiB
LARGE_BYTES: Final = 1024  # larger weights move to the second file
ALIGNMENT: Final = 4096  # so that they can be memory-mapped


def save_model(model: onnx.ModelProto, metadata: OnnxMetadata, path: Path) -> None:
    """Write a graph with new metadata into a staging folder; weights beyond 2 GiB go to a second file, PATH.data."""
    _sign(model)
    if weight_bytes(model) > ONE_FILE_BYTES:
        data = path.with_name(f"{path.name}.data")
        model = _with_weights_in(data, model)
        weights = WeightsFile(name=data.name, sha256=file_sha256(data))
        metadata = metadata.model_copy(update={"weights_file": weights})
    helper.set_model_props(model, metadata.as_properties())
    path.write_bytes(model.SerializeToString())


def _sign(model: onnx.ModelProto) -> None:
    """Name this package as the producer, and drop the converters' names and the operator sets that no node uses."""
    model.producer_name, model.producer_version = "swav-tf", version_of("swav-tf") or ""
    model.graph.name, model.graph.doc_string, model.doc_string = "swav-tf", "", ""
    used = {"", *(node.domain for node in model.graph.node)}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


def check(model: onnx.ModelProto) -> None:
    """Run ONNX's checker, with types and shapes, on a graph of any size."""
    onnx.checker.check_model(without_weights(model, as_inputs=True), full_check=True)


def without_weights(model: onnx.ModelProto, *, as_inputs: bool) -> onnx.ModelProto:
    """Return a copy without its large weights, with inputs in their place if the graph is to stay valid."""
    bare = onnx.ModelProto()
    for source, target, skipped in ((model, bare, "graph"), (model.graph, bare.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == skipped:
                continue
            if isinstance(value, (str, bytes, int, float)):
                setattr(target, field.name, value)
            else:
                getattr(target, field.name).MergeFrom(value)
    for tensor in model.graph.initializer:
        if _bytes(tensor) < LARGE_BYTES:
            bare.graph.initializer.append(tensor)
        elif as_inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(value)
    return bare


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of all weights in bytes."""
    return sum(map(_bytes, model.graph.initializer))


def _with_weights_in(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the large weights to a file and return a graph that refers to it."""
    outside = without_weights(model, as_inputs=False)
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if _bytes(tensor) < LARGE_BYTES:
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            reference = outside.graph.initializer.add(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": path.name, "offset": file.tell(), "length": len(tensor.raw_data)}
            for key, value in place.items():
                reference.external_data.add(key=key, value=str(value))
            file.write(tensor.raw_data)
    return outside


def _bytes(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
