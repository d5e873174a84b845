"""Open a weights file of any kind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from swav_tf.plumbing.errors import UsageError
from swav_tf.runs.checkpoint import ARRAYS, CheckpointStore
from swav_tf.weights.formats import Recognised, recognise
from swav_tf.weights.layout import as_torch
from swav_tf.weights.own import PARTS, OwnWeights, read_own_folder
from swav_tf.weights.safe_pickle import read_pickle
from swav_tf.weights.tensors import FLOATS, Tensor, WeightsError, from_bytes
from swav_tf.weights.torch_files import LEGACY_START, read_torch_legacy, read_torch_zip

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


STD_KEY = "std"  # in the metadata of our own safetensors files


def open_weights(path: Path) -> Recognised:
    """Whose weights a file or folder holds; no tensor of a file is read yet.

    Raises:
        UsageError: there is no such file, or the folder is none of ours.
        WeightsError: it is damaged, unsafe or of no known format.
        CheckpointError: a checkpoint of ours is damaged.
    """
    own = read_own(path)
    if own is not None:
        return Recognised(own.what, as_torch(own.arrays), std=own.std, step=own.step)
    return recognise(_tree(path), str(path))


def read_own(path: Path) -> OwnWeights | None:
    """The weights of our own run folder, checkpoint or safetensors file; None: it is somebody else's.

    Raises:
        UsageError, WeightsError, CheckpointError: as `open_weights`.
    """
    if not path.exists():
        raise UsageError(f"There must be a file or folder of weights. Received: {path}, which is not there.")
    if path.is_dir():
        return read_own_folder(path)
    if not _is_safetensors(path):
        return None
    tensors, metadata = read_safetensors(path)
    if not any(name.partition("/")[0] in PARTS and "/" in name for name in tensors):
        return None
    strange = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if strange:
        raise WeightsError(f"{path} must hold floats only:\n  " + "\n  ".join(strange))
    arrays = {name: tensor.float32() for name, tensor in tensors.items()}
    try:
        step = int(metadata.get("step", 0))
        std = None
        if STD_KEY in metadata:
            red, green, blue = json.loads(metadata[STD_KEY])
            std = float(red), float(green), float(blue)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} has metadata that swav-tf does not write: {error}.") from error
    return OwnWeights(arrays, "swav-tf safetensors", step, std)


def _tree(path: Path) -> Any:
    """What a file holds, as dictionaries and tensors."""
    if _is_safetensors(path):
        return read_safetensors(path)[0]
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
    if start.startswith(b"PK\x03\x04"):
        return read_torch_zip(path)
    if start == LEGACY_START:
        return read_torch_legacy(path)
    # Protocols 2 and later begin with 0x80; the older ones are known by their end alone.
    if start.startswith(b"\x80") or last == b".":
        with path.open("rb") as file:
            return read_pickle(file, source=str(path))
    what = "is empty" if not start else f"begins with {start[:12]!r}"
    raise WeightsError(
        f"{path} is no file of weights that is known here: it must be one of torch.save, a pickle of arrays, or "
        f"safetensors. It {what}."
    )


def _is_safetensors(path: Path) -> bool:
    """The length of a JSON header that fits into the file, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def sha256_of(path: Path) -> str:
    """Of a file, or of the arrays of a checkpoint: the one that the folder is, or the newest of a run."""
    if path.is_dir() and not (path / ARRAYS).exists():
        store = CheckpointStore(path / "checkpoints", kind="any")
        path = store.path(store.steps()[-1])
    with (path / ARRAYS if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
