"""Writes a dictionary of float32 tensors as `torch.save` does, without PyTorch.

A zip archive, nothing compressed: `data.pkl` describes the tensors, `data/N` holds the numbers of the
N-th. `torch.load(..., weights_only=True)` reads it from PyTorch 1.6 on.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from swav_tf.whole_file import whole_file

ROOT = "archive"
_ALIGNMENT = 64  # bytes, so that the file can be mapped into memory
_STORAGES = {"float32": b"FloatStorage", "int64": b"LongStorage"}


def write_torch_file(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Saves float32 and int64 arrays under their names, whole or not at all.

    Raises:
        DataError: the disk is full or refuses.
    """
    with (
        whole_file(path) as partial,
        partial.open("wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        _add(archive, file, "data.pkl", _describe(tensors))
        _add(archive, file, "byteorder", b"little")
        for number, array in enumerate(tensors.values()):
            little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
            _add(archive, file, f"data/{number}", little_endian.data)
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ROOT}/{name}")  # dated 1980: equal weights are equal files
    # A field that zip readers skip moves the data to the next multiple of 64; its own head takes 4 bytes.
    before = file.tell() + 30 + len(info.filename) + 4
    padding = -before % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
    archive.writestr(info, data)


# === The pickle that describes the tensors, protocol 2 ===


def _describe(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The program of an OrderedDict of tensors."""
    items = b"".join(
        _text(name) + _tensor(str(number), array) for number, (name, array) in enumerate(tensors.items())
    )
    ordered_dict = b"ccollections\nOrderedDict\n" + b")R"
    return b"\x80\x02" + ordered_dict + b"(" + items + b"u" + b"."


def _tensor(key: str, array: np.ndarray) -> bytes:
    """A call of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    storage = b"ctorch\n" + _STORAGES[array.dtype.name] + b"\n"
    reference = (
        b"(" + _text("storage") + storage + _text(key) + _text("cpu") + _number(array.size) + b"t" + b"Q"
    )
    strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
    arguments = reference + _number(0) + _numbers(array.shape) + _numbers(strides)
    hooks = b"ccollections\nOrderedDict\n" + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + b"(" + arguments + b"\x89" + hooks + b"t" + b"R"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)  # below 2^31: the largest tensor of width 5 has 59 million


def _numbers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_number(number) for number in numbers) + b"t"
