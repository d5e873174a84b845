"""Read and write the files of `torch.save` without PyTorch."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from swav_tf.plumbing.files import atomic_write
from swav_tf.weights.safe_pickle import (
    PLAIN,
    Call,
    PickledArray,
    WeightsError,
    from_bytes,
    read_pickle,
    whole_numbers,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001

_STORAGES = {
    "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "DoubleStorage": "float64",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_BYTES = {dtype: 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize for dtype in _STORAGES.values()}


class _Storage(PickledArray):
    """The numbers that tensors are views of."""

    __slots__ = ()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> PickledArray:
    """Return a strided view of a storage, after checking that it is inside."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    numbers = storage.array
    shape, stride = whole_numbers(shape), whole_numbers(stride)
    [offset] = whole_numbers([offset])
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor has shape {shape} and strides {stride}")
    count = math.prod(shape)
    reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else 0
    # A stride of 0 would make an array of any size out of one number.
    if count > numbers.size or offset + reach > numbers.size:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape}, strides {stride}, offset {offset} lies outside of its storage of "
            f"{numbers.size} numbers"
        )
    # The stride of an axis of length 1 is arbitrary.
    steps = [step * numbers.itemsize if size > 1 else 0 for step, size in zip(stride, shape, strict=True)]
    return PickledArray(as_strided(numbers[offset : offset + reach], shape, steps, writeable=False))


def _rebuild_parameter(data: Any, *_: Any) -> PickledArray:
    if not isinstance(data, PickledArray):
        raise pickle.UnpicklingError("a parameter has no tensor")
    return data


_ALLOWED = {
    **PLAIN,
    "torch._utils._rebuild_tensor": Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
    "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
    "torch.Size": Call(lambda sizes=(): whole_numbers(tuple(sizes))),
    "torch.device": Call(lambda *_: None),
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.{dtype}": dtype for dtype in _STORAGES.values()},
}


def _read_tree(file: IO[bytes], path: Path, load: Callable[[str, str, int], np.ndarray]) -> Any:
    """Return the object in a pickle; `load(key, dtype, length)` returns the numbers of a storage."""
    storages: dict[str, tuple[str, int, _Storage]] = {}

    def storage(pid: Any) -> _Storage:
        match pid:
            case ("storage", str(dtype), str(key), _, int(length), *_) if dtype in _BYTES and length >= 0:
                if key not in storages:
                    storages[key] = dtype, length, _Storage(load(key, dtype, length))
                if storages[key][:2] != (dtype, length):
                    raise pickle.UnpicklingError(f"storage {key[:40]} is described in two ways")
                return storages[key][2]
        raise pickle.UnpicklingError("it refers to something that is not a storage of numbers")

    return read_pickle(file, source=str(path), allowed=_ALLOWED, storage=storage)


def read_torch_zip(path: Path) -> Any:
    """Return the object in a file of PyTorch 1.6 or later; its tensors are `PickledArray`s."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        raise WeightsError(
            f"{path} is damaged or incompletely downloaded: {error}. Download it again."
        ) from error
    with archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError(f"{path} is a zip archive, but not one that `torch.save` writes.")
        [root] = roots
        if root + "constants.pkl" in members:
            raise WeightsError(
                f"{path} is a TorchScript program, which holds code. Save the model's state_dict() instead."
            )
        # `torch.save` never compresses, so that a small file cannot unpack into a large one.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise WeightsError(
                f"{path} is refused: it has compressed members, which `torch.save` never writes."
            )

        def load(key: str, dtype: str, length: int) -> np.ndarray:
            info = members.get(f"{root}data/{key}")
            if info is None or info.file_size != length * _BYTES[dtype]:
                there = "missing" if info is None else f"of {info.file_size} bytes"
                raise pickle.UnpicklingError(f"storage {key[:40]} of {length} {dtype} is {there}")
            return from_bytes(archive.read(info), dtype)

        try:
            if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
                raise WeightsError(f"{path} was written on a big-endian machine; write it again on another.")
            data = archive.read(root + "data.pkl")
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError, struct.error) as error:
            raise WeightsError(f"{path} is damaged: {error}.") from error
        return _read_tree(io.BytesIO(data), path, load)


def read_torch_legacy(path: Path) -> Any:
    """Return the object in a file from before PyTorch 1.6; its tensors are `PickledArray`s.

    Such a file has five pickles (magic number, protocol, machine, the object, the keys of the storages), then each
    storage: its length as 8 bytes, and its numbers.
    """
    storages: dict[str, tuple[str, np.ndarray]] = {}  # filled once the object is read
    room = path.stat().st_size

    def load(key: str, dtype: str, length: int) -> np.ndarray:
        nonlocal room
        room -= length * _BYTES[dtype]
        if room < 0:
            raise WeightsError(
                f"{path} is damaged or incompletely downloaded: storage {key[:40]} is incomplete. Download it again."
            )
        array = np.empty(length, "float32" if dtype == "bfloat16" else dtype)
        storages[key] = dtype, array
        return array

    with path.open("rb") as file:
        magic, protocol, machine = (read_pickle(file, source=str(path)) for _ in range(3))
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(machine, dict):
            raise WeightsError(f"{path} is damaged: it does not start as files of `torch.save` do.")
        if machine.get("little_endian") is not True:
            raise WeightsError(f"{path} was written on a big-endian machine; write it again on another.")
        tree = _read_tree(file, path, load)
        keys = read_pickle(file, source=str(path))
        if not isinstance(keys, list) or sorted(keys, key=str) != sorted(storages):
            raise WeightsError(f"{path} is damaged: its list of storages does not fit its tensors.")
        for key in keys:
            dtype, array = storages[key]
            stored = int.from_bytes(file.read(8), "little")
            data = file.read(array.size * _BYTES[dtype])
            if stored != array.size or len(data) != array.size * _BYTES[dtype]:
                raise WeightsError(
                    f"{path} is damaged or incompletely downloaded: storage {key} is incomplete. Download it again."
                )
            array[:] = from_bytes(data, dtype)
    return tree


# === Writing ===


def write_torch_file(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Save float32 and int64 arrays under their names, completely or not at all. Equal arrays give equal files."""
    with atomic_write(path) as partial, partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "data.pkl", _describe(tensors))
        _add(archive, file, "byteorder", b"little")
        for number, array in enumerate(tensors.values()):
            _add(archive, file, f"data/{number}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # dated 1980, not compressed
    # An extra field moves the data to the next multiple of 64, so that the file can be mapped into memory.
    padding = -(file.tell() + 30 + len(info.filename) + 4) % 64
    info.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
    archive.writestr(info, data)


# The pickle (protocol 2) that describes the tensors.


def _describe(tensors: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(
        _text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(tensors.items())
    )
    return b"\x80\x02" + _ORDERED_DICT + b"(" + items + b"u."


def _tensor(key: str, array: np.ndarray) -> bytes:
    """Return a call of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    storage = {"float32": b"ctorch\nFloatStorage\n", "int64": b"ctorch\nLongStorage\n"}[array.dtype.name]
    pid = b"(" + _text("storage") + storage + _text(key) + _text("cpu") + _number(array.size) + b"tQ"
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    arguments = pid + _number(0) + _numbers(array.shape) + _numbers(strides) + b"\x89" + _ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)  # below 2^31: the largest tensor of width 5 has 59 million


def _numbers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
