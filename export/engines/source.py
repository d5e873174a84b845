"""An exported ONNX file as what an engine is made of. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluate.runners.checksums import check_unchanged, check_weights
from evaluate.runners.engine_file import sha256_of
from evaluate.runners.onnx_metadata import OnnxMetadata, Precision, read_metadata
from export.engines.proof import expected
from swav_tf.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class EngineSource:
    """An exported ONNX file.

    Attributes:
        path: where it is.
        data: its bytes.
        sha256: of them.
        structure_sha256: of the graph without the values of its weights.
        convolutions: names of the graph's.
        properties: its `metadata_props`.
        metadata: what they tell.
    """

    path: Path
    data: bytes
    sha256: str
    structure_sha256: str
    convolutions: tuple[str, ...]
    properties: dict[str, str]
    metadata: OnnxMetadata

    def precisions(self, names: Sequence[str]) -> dict[str, Precision]:
        """What the convolutions of these names must be computed in."""
        quantisation = self.metadata.quantisation or {}
        return expected(names, self.metadata.precision, quantisation.get("float32_convolutions", ()))


def read_source(path: Path) -> EngineSource:
    """Reads it, and its weights where they are apart.

    Raises:
        UsageError: it is not there, or is int8 for a CPU.
        DataError: it is damaged, is not what its export recorded, or not one by `swav-tf export`.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"An engine is built from an exported ONNX file. Received: {path}, not there.")
    check_unchanged(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no common class but this
        raise DataError(f"{path} cannot be read as an ONNX file: {error}.") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = read_metadata(properties, str(path))
    check_weights(path, metadata.weights_file)
    quantisation = metadata.quantisation
    if quantisation is not None and quantisation.get("target") != "tensorrt":
        raise UsageError(
            f"int8 for TensorRT has a graph of its own. Received: {path}, whose graph is for a CPU. Export one: "
            "swav-tf export RUN --precision int8 --target tensorrt -o DIR"
        )
    convolutions = tuple(node.name for node in model.graph.node if node.op_type == "Conv")
    structure = _structure_sha256(model)
    return EngineSource(path, data, sha256_of(data), structure, convolutions, properties, metadata)


def _structure_sha256(model: onnx.ModelProto) -> str:
    """The checksum of a graph without the values of its weights."""
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        for values in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(values)
    return sha256_of(model.SerializeToString(deterministic=True))
