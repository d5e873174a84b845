"""The records of TFRecord shards and their index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable

Values = list[bytes] | list[int]

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_BYTES_LIST, _INT64_LIST = 1, 3
_WORD: Final = 1 << 64


class MalformedExample(ValueError):
    """The bytes are no tf.train.Example."""


def encode_example(features: Mapping[str, bytes | int]) -> bytes:
    """The message with one value a feature, in the order of their names: the same bytes every time."""
    entries = b""
    for name in sorted(features):
        value = features[name]
        if isinstance(value, bytes):
            feature = _field(_BYTES_LIST, _field(1, value))
        else:
            feature = _field(_INT64_LIST, _field(1, _varint(value % _WORD)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def decode_example(data: bytes) -> dict[str, Values]:
    """Every feature's values by name; floats, which no image needs, are left out of a feature's list.

    Raises:
        MalformedExample: if the bytes are no such message.
    """
    features: dict[str, Values] = {}
    for number, start, end in _fields(data, 0, len(data)):
        if number == 1:
            for inner, entry_start, entry_end in _fields(data, start, end):
                if inner == 1:
                    name, values = _entry(data, entry_start, entry_end)
                    features[name] = values
    return features


def _entry(data: bytes, start: int, end: int) -> tuple[str, Values]:
    name, values = "", list[bytes]()
    found: Values = values
    for number, first, last in _fields(data, start, end):
        if number == 1:
            name = data[first:last].decode("utf-8", "replace")
        elif number == 2:
            for kind, list_first, list_last in _fields(data, first, last):
                if kind == _BYTES_LIST:
                    found = [data[a:b] for field, a, b in _fields(data, list_first, list_last) if field == 1]
                elif kind == _INT64_LIST:
                    found = _integers(data, list_first, list_last)
    return name, found


def _integers(data: bytes, start: int, end: int) -> list[int]:
    """The list's values, packed one behind the other, or each a field of its own: both are allowed."""
    found = []
    for number, first, last in _fields(data, start, end):
        while number == 1 and first < last:
            value, first = _read_varint(data, first, last)
            found.append(value - _WORD if value >= _WORD // 2 else value)
    return found


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of the value of each field between two places."""
    while start < end:
        key, start = _read_varint(data, start, end)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, start = _read_varint(data, start, end)
            stop = start + length
        elif kind == _VARINT:
            _, stop = _read_varint(data, start, end)
        elif kind in (_EIGHT, _FOUR):
            stop = start + (8 if kind == _EIGHT else 4)
        else:
            raise MalformedExample(f"a field of kind {kind}")
        if number == 0 or stop > end:
            raise MalformedExample("a field that reaches beyond the message")
        yield number, start, stop
        start = stop


def _read_varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 64:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value % _WORD, start
    raise MalformedExample("a number without an end")


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


HEADER: Final = 12  # length and its checksum
FOOTER: Final = 4  # the data's checksum
_REMOTE_BLOCK: Final = 16 << 20  # bytes asked of an object store at a time


def framed(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, data and footer of a record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)), data, struct.pack("<I", _masked_crc(data))


def unframed(data: bytes, length: int) -> bytes:
    """The data of a record from its data and footer together, held against the checksum.

    Raises:
        OSError: the shard ends before, or the data is not what was written.
    """
    record, footer = data[:length], data[length : length + FOOTER]
    if len(footer) < FOOTER:
        raise OSError(f"the shard ends within the record: {len(data)} of {length + FOOTER} bytes are there")
    if struct.unpack("<I", footer)[0] != _masked_crc(record):
        raise OSError("the record's checksum is wrong: its bytes are not those that were written")
    return record


def record_table(shard: str) -> npt.NDArray[np.int64]:
    """Offset and length of the data of each record in a shard, (records, 2), by one walk over the lengths.

    Raises:
        DataError: the shard is truncated, compressed or no TFRecord file.
    """
    size = storage.facts(shard).size
    reader = _LocalReader(shard) if not storage.is_remote(shard) else _RemoteReader(shard)
    records: list[tuple[int, int]] = []
    with reader:
        if reader.read(0, 2) == b"\x1f\x8b":
            raise DataError(f"TFRecord shards must be uncompressed; {shard} is a gzip file. Unpack it first.")
        position = 0
        while position < size:
            header = reader.read(position, HEADER)
            length = struct.unpack_from("<Q", header)[0] if len(header) == HEADER else size
            end = position + HEADER + length + FOOTER
            if end > size:
                raise DataError(
                    f"TFRecord shard {shard} is truncated or not a TFRecord file: record {len(records)}, at "
                    f"byte {position}, does not end within the file's {size} bytes. Copy or write it again."
                )
            records.append((position + HEADER, length))
            position = end
    return np.array(records, np.int64).reshape(-1, 2)


class _LocalReader:
    """A file that stays open."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDONLY)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


class _RemoteReader:
    """A remote file, read in large blocks: a request for each of a shard's lengths would take minutes."""

    def __init__(self, path: str) -> None:
        self._path, self._start, self._block = path, 0, b""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, offset: int, length: int) -> bytes:
        within = offset - self._start
        if not 0 <= within <= len(self._block) - length:
            self._start, within = offset, 0
            self._block = storage.read_range(self._path, offset, _REMOTE_BLOCK)
        return self._block[within : within + length]


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


INDEX: Final = "index.json"
RECORDS: Final = "index.records.npy"
NAMES: Final = "index.names.bin"
FORMAT: Final = "swav-tf shards"
VERSION: Final = 1
IMAGE_KEY, LABEL_KEY = "image/encoded", "image/class/label"  # what the shards of `write_shards` hold
_PLAIN_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        name: in the folder of the index.
        examples: number of records.
        bytes: length of the file.
        sha256: of the file, in hexadecimal.
    """

    name: str
    examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What the three files say.

    Attributes:
        folder: where index and shards lie.
        kind: how the packed images were found, class_folders or images.
        class_names: of the labels, in their order.
        shards: in the order of the images.
        source: `images`, `bytes`, `names_sha256`, `sizes_sha256` and `times_sha256` (of the last changes; not from
            earlier versions) of the packed images.
        records: int64 (images, 3): offset, length, class.
        names: bytes of the names, each ended by a zero byte.
    """

    folder: str
    kind: str
    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    source: dict[str, Any]
    records: npt.NDArray[np.int64]
    names: bytes


def index_files(index: ShardIndex, *, tool: str) -> dict[str, bytes]:
    """The contents of the three files by name; index.json is the last and makes the others count."""
    table = io.BytesIO()
    np.save(table, index.records, allow_pickle=False)
    files = {RECORDS: table.getvalue(), NAMES: index.names}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool": tool,
        "kind": index.kind,
        "images": len(index.records),
        "source": index.source,
        "classes": list(index.class_names),
        "files": {name: _sha256(data) for name, data in files.items()},
        "shards": [asdict(shard) for shard in index.shards],
    }
    return {**files, INDEX: (json.dumps(document, indent=1) + "\n").encode()}


def has_index(folder: str) -> bool:
    """Whether shards in this folder have an index."""
    return storage.is_folder(folder) and storage.exists(storage.join(folder, INDEX))


def read_index(folder: str) -> ShardIndex:
    """The index of a folder, checked whole: its files' checksums, and that every record lies in its shard.

    The shards' lengths are looked at, their bytes are not: `swav-tf data check` does that.

    Raises:
        DataError: something is missing, damaged, or lies outside of the folder.
    """
    path = storage.join(folder, INDEX)
    try:
        document = json.loads(storage.read_file(path))
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise DataError(
                f"{path} must be an index of {FORMAT}, version {VERSION}; it is {document.get('format')!r}, "
                f"version {document.get('version')!r}. Read it with the version of swav-tf that wrote it."
            )
        contents = {name: storage.read_file(storage.join(folder, name)) for name in (RECORDS, NAMES)}
        for name, data in contents.items():
            if _sha256(data) != document["files"][name]:
                raise _damaged(folder, f"{name} is not the file that was written with {INDEX}")
        records = np.load(io.BytesIO(contents[RECORDS]), allow_pickle=False)
        index = ShardIndex(
            folder=folder,
            kind=str(document["kind"]),
            class_names=tuple(map(str, document["classes"])),
            shards=tuple(_shard(entry) for entry in document["shards"]),
            source=dict(document["source"]),
            records=records,
            names=contents[NAMES],
        )
        images = int(document["images"])
    except FileNotFoundError as error:
        raise _damaged(folder, f"a file of the index is missing: {error}") from error
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{path} cannot be read: {type(error).__name__}: {error}") from error
    _check(index, images)
    return index


def shard_path(index: ShardIndex, shard: Shard) -> str:
    """Where a shard lies."""
    return storage.join(index.folder, shard.name)


def _shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(str(entry["name"]), int(entry["examples"]), int(entry["bytes"]), str(entry["sha256"]))
    if not shard.name.strip(".") or not _PLAIN_LETTERS.issuperset(shard.name):
        raise DataError(
            "An index must name shards in its own folder, by plain file names; it names "
            f"{printable(shard.name)!r}. It was not written by swav-tf data shard: do not use it."
        )
    if shard.examples < 0 or shard.bytes < 0:
        raise ValueError("a negative number of examples or bytes")
    return shard


def _check(index: ShardIndex, images: int) -> None:
    records = index.records
    if records.dtype != np.int64 or records.shape != (images, 3) or index.names.count(b"\0") != images:
        raise _damaged(index.folder, f"{RECORDS} and {NAMES} do not hold {images} images")
    if sum(shard.examples for shard in index.shards) != images or not images:
        raise _damaged(index.folder, f"its shards do not hold {images} images")
    ends = np.repeat([shard.bytes for shard in index.shards], [shard.examples for shard in index.shards])
    offsets, lengths, labels = records.T
    if (
        (offsets < HEADER).any()
        or (lengths < 0).any()
        or (lengths > ends - FOOTER - offsets).any()
        or (labels < -1).any()
        or (labels >= max(1, len(index.class_names))).any()
    ):
        raise _damaged(
            index.folder, f"{RECORDS} names places outside of the shards, or classes that are none"
        )
    for shard in index.shards:
        _check_file(index, shard)


def _check_file(index: ShardIndex, shard: Shard) -> None:
    path = shard_path(index, shard)
    if not storage.is_remote(path):
        folder = os.path.realpath(index.folder)
        if os.path.dirname(os.path.realpath(path)) != folder:
            raise DataError(
                f"The shards of an index must lie in its folder; {path} is a link to "
                f"{printable(os.path.realpath(path))}. Copy the file to its place."
            )
    try:
        size = storage.facts(path).size
    except OSError as error:
        raise _damaged(index.folder, f"shard {shard.name} cannot be read: {error}") from error
    if size != shard.bytes:
        raise _damaged(
            index.folder, f"shard {shard.name} has {size:,} bytes, not {shard.bytes:,}: it is truncated"
        )


def _damaged(folder: str, what: str) -> DataError:
    return DataError(
        f"The shards in {folder} must be whole, as their {INDEX} says: {what}. Copy the folder again, "
        "or pack the images again with swav-tf data shard --fresh."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
