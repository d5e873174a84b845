"""The index of a folder of shards: what they hold and where each record is, so that opening reads no shard.

index.json          shards (name, examples, bytes, SHA-256), classes, number of images, facts of their source
index.records.npy   int64 (images, 3): offset and length of each record's data, its class (-1: none)
index.names.bin     the images' names, relative to their source, each ended by a zero byte

An index is somebody's file: nothing in it is believed that was not checked, and the shards that it
names lie in its folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.data.names import name_bytes, printable
from swav_tf.data.shards.records import FOOTER, HEADER
from swav_tf.errors import DataError

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

    def image_names(self) -> list[str]:
        """The images' names, in order."""
        return self.names.decode("utf-8", "surrogateescape").split("\0")[:-1]


def pack_names(names: Iterable[str]) -> bytes:
    """Names as the index keeps them."""
    return b"".join(name_bytes(name) + b"\0" for name in names)


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
