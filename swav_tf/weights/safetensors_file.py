"""Reads safetensors files tensor by tensor, bfloat16 too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from swav_tf.weights.errors import WeightsError
from swav_tf.weights.tensors import Tensor, from_bytes

_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass  # checks the header: offsets inside of the file, in order, of the size that the shapes need
        with path.open("rb") as file:
            start = 8 + (length := int.from_bytes(file.read(8), "little"))
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} is no whole safetensors file: {error}.") from error
    metadata = header.pop("__metadata__", {})
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    return tensors, metadata


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"], entry["dtype"])

    def read() -> np.ndarray:
        with path.open("rb") as file:
            file.seek(start + begin)
            return from_bytes(file.read(end - begin), dtype).reshape(shape)

    return Tensor(name, shape, dtype, read)
