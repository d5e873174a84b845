"""Read and write PyTorch files without PyTorch."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from swav_tf.plumbing.files import atomic_write
from swav_tf.weights.safe_pickle import PLAIN, Call, read_pickle, whole_numbers
from swav_tf.weights.tensors import Tensor, WeightsError, from_bytes

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001

STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# What `zipfile` raises at damaged archives: it does not promise less.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    MemoryError,
    OverflowError,
)
_DTYPE_NAMES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


def item_size(dtype: str) -> int:
    """Bytes of one number."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _StorageType(str):
    """The stand-in of a storage class: the type of its numbers."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a class")


@dataclass(frozen=True)
class _Storage:
    """Numbers that tensors are views of.

    Attributes:
        key: its name in the file.
        dtype: of its numbers.
        length: how many there are.
        read: gets `count` of them from the `first` on.
    """

    key: str
    dtype: str
    length: int
    read: Callable[[int, int], np.ndarray]

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a storage")


class TorchView:
    """A tensor: a strided view of a storage, checked to lie inside of it."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor has no storage")
        shape, stride = whole_numbers(shape), whole_numbers(stride)
        [offset] = whole_numbers([offset])
        if len(shape) != len(stride):
            raise pickle.UnpicklingError(f"a tensor has shape {shape} and strides {stride}")
        count = math.prod(shape)
        reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else 0
        # A stride of 0 would make an array of any size out of one number.
        if count > storage.length or offset + reach > storage.length:
            raise pickle.UnpicklingError(
                f"a tensor of shape {shape}, strides {stride}, offset {offset} lies outside of its storage "
                f"of {storage.length} numbers"
            )
        size = item_size(storage.dtype) if storage.dtype != "bfloat16" else 4

        def read() -> np.ndarray:
            numbers = storage.read(offset, reach)
            # The stride of an axis of one is anything at all.
            steps = [step * size if length > 1 else 0 for step, length in zip(stride, shape, strict=True)]
            return as_strided(numbers, shape, steps).copy()

        self._tensor = Tensor("", shape, storage.dtype, read)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a tensor")

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        return self._tensor


def _parameter(data: Any, *_: Any) -> TorchView:
    if not isinstance(data, TorchView):
        raise pickle.UnpicklingError("a parameter has no tensor")
    return data


ADMITTED = {
    **PLAIN,
    "torch._utils._rebuild_tensor": Call(TorchView),
    "torch._utils._rebuild_tensor_v2": Call(TorchView),
    "torch._utils._rebuild_parameter": Call(_parameter),
    "torch.Size": Call(lambda sizes=(): whole_numbers(tuple(sizes))),
    "torch.device": Call(lambda *_: None),
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in STORAGES.items()},
    **{f"torch.{name}": name for name in _DTYPE_NAMES},
}


def _storage_of(
    pid: Any, read: Callable[[str, str, int, int], np.ndarray], length_of: Callable[[str, str, int], int]
) -> _Storage:
    """The storage that a persistent id names: ("storage", type, key, device, length, ...)."""
    if (
        not isinstance(pid, tuple)
        or len(pid) < 5
        or pid[0] != "storage"
        or not isinstance(pid[1], _StorageType)
    ):
        kind = pid[0] if isinstance(pid, tuple) and pid and isinstance(pid[0], str) else type(pid).__name__
        raise pickle.UnpicklingError(f"it refers to a {kind[:20]!r}, not to a storage of numbers")
    dtype, key = str.__str__(pid[1]), pid[2]
    [length] = whole_numbers([pid[4]])
    if not isinstance(key, str):
        raise pickle.UnpicklingError("a storage has no name")
    length = length_of(key, dtype, length)
    return _Storage(key, dtype, length, lambda first, count: read(key, dtype, first, count))


# === The zip format (PyTorch 1.6 and later) ===


def read_torch_zip(path: Path) -> Any:
    """The saved object; its tensors are `TorchView`s.

    Raises:
        WeightsError: it is no such file, is damaged, or asks for anything but tensors and plain data.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = {info.filename: info for info in archive.infolist()}
    except _ZIP_ERRORS as error:
        raise WeightsError(f"{path} is damaged, or cut off in a download: {error}.") from error
    with archive:
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError(f"{path} is a zip archive, but not one that `torch.save` writes.")
        [root] = roots
        if root + "constants.pkl" in members:
            raise WeightsError(
                f"{path} is a TorchScript program, which holds code. Save the model's state_dict() instead."
            )
        # `torch.save` never compresses: a small file cannot unfold into a large one.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise WeightsError(
                f"{path} is refused: members of it are compressed, as `torch.save` never does."
            )
        if root + "byteorder" in members and _member(archive, members, root + "byteorder", path) != b"little":
            raise WeightsError(f"{path} was written on a big-endian machine; write it again on another.")

        def length_of(key: str, dtype: str, length: int) -> int:
            info = members.get(f"{root}data/{key}")
            if info is None or info.file_size != length * item_size(dtype):
                there = "missing" if info is None else f"of {info.file_size} bytes"
                raise pickle.UnpicklingError(f"storage {key[:40]} of {length} {dtype} is {there}")
            return length

        def read(key: str, dtype: str, first: int, count: int) -> np.ndarray:
            return from_bytes(_part(path, f"{root}data/{key}", first, count, item_size(dtype)), dtype)

        return read_pickle(
            io.BytesIO(_member(archive, members, root + "data.pkl", path)),
            source=str(path),
            admitted=ADMITTED,
            storage=lambda pid: _storage_of(pid, read, length_of),
        )


def _member(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, path: Path) -> bytes:
    try:
        return archive.read(members[name])
    except _ZIP_ERRORS as error:
        raise WeightsError(f"{path} is damaged: {name}: {error}.") from error


def _part(path: Path, name: str, first: int, count: int, size: int) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            if first:
                file.seek(first * size)
            data = file.read(count * size)  # read from start to end, its checksum is verified
    except _ZIP_ERRORS as error:
        raise WeightsError(f"{path} is damaged: {name}: {error}.") from error
    if len(data) != count * size:
        raise WeightsError(f"{path} is damaged: {name} ends early.")
    return data


# === The format before ===


def read_torch_legacy(path: Path) -> Any:
    """The saved object of a file from before PyTorch 1.6; its tensors are `TorchView`s.

    Five pickles: magic number, protocol, machine, the object, the keys of the storages; then each
    storage: its length as 8 bytes, and its numbers.

    Raises:
        WeightsError: it is no such file, is damaged, or asks for anything but tensors and plain data.
    """
    dtypes: dict[str, tuple[str, int]] = {}
    starts: dict[str, int] = {}

    def length_of(key: str, dtype: str, length: int) -> int:
        if dtypes.setdefault(key, (dtype, length)) != (dtype, length):
            raise pickle.UnpicklingError(f"storage {key[:40]} is described in two ways")
        return length

    def read(key: str, dtype: str, first: int, count: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(starts[key] + first * item_size(dtype))
            return from_bytes(file.read(count * item_size(dtype)), dtype)

    def next_pickle(file: IO[bytes]) -> Any:
        return read_pickle(
            file, source=str(path), admitted=ADMITTED, storage=lambda pid: _storage_of(pid, read, length_of)
        )

    with path.open("rb") as file:
        magic, protocol, machine = next_pickle(file), next_pickle(file), next_pickle(file)
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(machine, dict):
            raise WeightsError(f"{path} is damaged: it does not begin as files of `torch.save` do.")
        if machine.get("little_endian") is not True:
            raise WeightsError(f"{path} was written on a big-endian machine; write it again on another.")
        tree, keys = next_pickle(file), next_pickle(file)
        known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not known or sorted(keys) != sorted(dtypes):
            raise WeightsError(f"{path} is damaged: its list of storages does not fit its tensors.")
        position, end = file.tell(), path.stat().st_size
        for key in keys:
            dtype, length = dtypes[key]
            file.seek(position)
            stored = int.from_bytes(file.read(8), "little")
            starts[key] = position + 8
            position = starts[key] + length * item_size(dtype)
            if stored != length or position > end:
                raise WeightsError(
                    f"{path} is damaged, or cut off in a download: storage {key} is not whole."
                )
    return tree


ROOT = "archive"
_ALIGNMENT = 64  # bytes, so that the file can be mapped into memory
_STORAGES = {"float32": b"FloatStorage", "int64": b"LongStorage"}


def write_torch_file(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Saves float32 and int64 arrays under their names, whole or not at all.

    Raises:
        DataError: the disk is full or refuses.
    """
    with (
        atomic_write(path) as partial,
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
