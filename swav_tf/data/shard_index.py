"""The index of packed shards: their checksums, and offset, length, class and name of every image.

index.json           lists shards, classes and the checksums of all other files; written last
index.records.npy    offset, length and class of each image
index.names.bin      the names, each followed by a zero byte
shards.plan.json     exists only while shards are being written (`swav_tf.data.sharding`)

A folder of parts, each of them such a folder, is read as one: its shards, images and names are those of all parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.data.names import PackedNames
from swav_tf.data.records import FOOTER, HEADER
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.parts import part_name
from swav_tf.plumbing.system import version_of

INDEX: Final = "index.json"
RECORDS: Final = "index.records.npy"
NAMES: Final = "index.names.bin"
PLAN: Final = "shards.plan.json"
FORMAT: Final = "swav-tf shards"
VERSION: Final = 1
WHOLE_LABELS: Final = "whole_labels_sha256"
IMAGE_KEY, LABEL_KEY = "image/encoded", "image/class/label"
_NUMBERED: Final = re.compile(r"-\d+-of-\d+")
_PART: Final = re.compile(r"part-\d{5,}-of-(\d{5,})")
_PLAIN_NAME: Final = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")


def is_shard(name: str) -> bool:
    """Return whether a name is that of a TFRecord shard. `bird-of-paradise` is none."""
    numbered = _NUMBERED.search(name) is not None and not name.lower().endswith((".parquet", ".tar"))
    return "tfrecord" in name or numbered


@dataclass(frozen=True)
class Shard:
    """One file of records."""

    name: str  # in the folder of the index; of a part with its folder
    examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """The content of the three files."""

    folder: str  # of index and shards
    kind: str  # how the packed images were found: class_folders or images
    class_names: tuple[str, ...]  # in the order of the labels
    shards: tuple[Shard, ...]  # in the order of the images
    # Of the packed images: images, bytes, names_sha256, sizes_sha256 and, unless an early version packed them,
    # times_sha256 (of the last changes) and labels_sha256. Of a part also `part`, and of all parts `whole` (images and
    # names_sha256) and, unless an early version packed it, WHOLE_LABELS.
    source: dict[str, Any]
    records: npt.NDArray[np.signedinteger]  # (images, 3): offset, length, class
    names: PackedNames

    def path(self, shard: Shard) -> str:
        """Return the path of a shard."""
        return storage.join(self.folder, shard.name)


def has_index(folder: str) -> bool:
    """Return whether the shards of a folder have an index, or its parts have."""
    place = storage.join(folder, INDEX)
    return storage.is_folder(folder) and (storage.exists(place) or bool(part_counts(folder)))


def part_counts(folder: str) -> set[int]:
    """Return the number of all parts of the packing in a folder; empty if it is not in parts."""
    return {int(found[1]) for name in storage.names_in(folder) if (found := _PART.fullmatch(name))}


def is_unfinished(folder: str) -> bool:
    """Return whether packing into the folder has started and is not finished."""
    return storage.is_folder(folder) and storage.exists(storage.join(folder, PLAN))


def index_files(index: ShardIndex) -> dict[str, bytes]:
    """Return the content of the three files by name, index.json last."""
    table = io.BytesIO()
    np.save(table, index.records, allow_pickle=False)
    files = {RECORDS: table.getvalue(), NAMES: index.names.to_bytes()}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"swav-tf {version_of('swav-tf')}",
        "kind": index.kind,
        "images": len(index.records),
        "source": index.source,
        "classes": list(index.class_names),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "shards": [asdict(shard) for shard in index.shards],
    }
    return {**files, INDEX: (json.dumps(document, indent=1) + "\n").encode()}


def read_index(folder: str) -> ShardIndex:
    """Read an index, or those of all parts. Check checksums, sizes of shards, and that every record lies in its shard.

    Raises:
        DataError: something is missing or damaged, or lies outside of the folder.
    """
    if not storage.exists(storage.join(folder, INDEX)) and (counts := part_counts(folder)):
        return _read_parts(folder, counts)
    return _read_one(folder)


def _read_parts(folder: str, counts: set[int]) -> ShardIndex:
    if len(counts) > 1:
        listed = " and of ".join(map(str, sorted(counts)))
        raise DataError(f"{folder} must contain parts of the same packing. Received: parts of {listed}.")
    [count] = counts
    names = {f"{number}/{count}": part_name(number, count) for number in range(1, count + 1)}
    places = {part: storage.join(folder, name) for part, name in names.items()}
    if missing := [
        part
        for part, place in places.items()
        if is_unfinished(place) or not storage.exists(storage.join(place, INDEX))
    ]:
        raise DataError(
            f"{folder} must have all its {count} parts. Missing or unfinished: {', '.join(missing)}. Create each with "
            f"swav-tf data shard DATA {folder} --part {missing[0]}."
        )
    parts = [_read_one(place) for place in places.values()]
    first = parts[0]
    for part, other in zip(names, parts, strict=True):
        mine, its = ((one.kind, one.class_names, one.source.get("whole")) for one in (first, other))
        if mine != its or other.source.get("part") != part:
            raise DataError(
                f"All parts in {folder} must contain the same images. Part {part} does not match part 1/{count}: the "
                "images changed in between. Pack it again with --fresh."
            )
        if len({one.source[WHOLE_LABELS] for one in (first, other) if WHOLE_LABELS in one.source}) > 1:
            raise DataError(
                f"All parts in {folder} must have been packed with the same labels. Received: other labels for part "
                f"{part} than for part 1/{count}. Labels changed in between: repeat swav-tf data shard for every part, "
                "with --fresh where it reports other labels."
            )
    return ShardIndex(
        folder=folder,
        kind=first.kind,
        class_names=first.class_names,
        shards=tuple(
            replace(shard, name=f"{name}/{shard.name}")
            for name, part in zip(names.values(), parts, strict=True)
            for shard in part.shards
        ),
        source={**first.source["whole"], "bytes": sum(part.source["bytes"] for part in parts)},
        records=np.concatenate([part.records for part in parts]),
        names=PackedNames.of(part.names.to_bytes() for part in parts),
    )


def _read_one(folder: str) -> ShardIndex:
    path = storage.join(folder, INDEX)
    try:
        document = json.loads(storage.read_file(path))
        if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
            raise DataError(
                f"{path} must be an index of {FORMAT}, version {VERSION}; it is {document.get('format')!r}, "
                f"version {document.get('version')!r}. Read it with the version of swav-tf that wrote it."
            )
        names, records = (_content(folder, name, document["files"][name]) for name in (NAMES, RECORDS))
        index = ShardIndex(
            folder=folder,
            kind=str(document["kind"]),
            class_names=tuple(map(str, document["classes"])),
            shards=tuple(_shard(entry) for entry in document["shards"]),
            source=dict(document["source"]),
            records=_array_in(records),
            names=PackedNames.of([names]),
        )
        _check_records(index, int(document["images"]))
        small = max(shard.bytes for shard in index.shards) < 2**31
        index = replace(index, records=index.records.astype(np.int32 if small else np.int64))
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{path} cannot be read: {type(error).__name__}: {error}") from error
    for shard in index.shards:
        _check_file(index, shard)
    return index


def _content(folder: str, name: str, sha256: str) -> bytes | mmap.mmap:
    """Return the content of a file of the index; a local one is mapped, as it is larger than what is kept of it."""
    path = storage.join(folder, name)
    if storage.is_remote(path):
        content: bytes | mmap.mmap = storage.read_file(path)
    else:
        with storage.opened(path) as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(folder, f"{name} is not the file that was written with {INDEX}")
    return content


def _array_in(content: bytes | mmap.mmap) -> npt.NDArray[np.int64]:
    """Return the array in the content of an .npy file without copying it."""
    head = io.BytesIO(content[:1024])
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError(f"{RECORDS} is of another version of NumPy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.frombuffer(content, dtype, offset=head.tell()).reshape(shape, order=order)


def _shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(str(entry["name"]), int(entry["examples"]), int(entry["bytes"]), str(entry["sha256"]))
    if not _PLAIN_NAME.fullmatch(shard.name):
        raise DataError(
            "An index must name shards in its own folder, by plain file names; it names "
            f"{printable(shard.name)!r}. swav-tf data shard did not write it: do not use it."
        )
    if shard.examples < 0 or shard.bytes < 0:
        raise ValueError("a negative number of examples or bytes")
    return shard


def _check_records(index: ShardIndex, images: int) -> None:
    records = index.records
    if records.dtype != np.int64 or records.shape != (images, 3) or len(index.names) != images:
        raise ValueError(f"{RECORDS} and {NAMES} do not contain {images} images")
    if sum(shard.examples for shard in index.shards) != images or not images:
        raise ValueError(f"its shards do not contain {images} images")
    start = 0
    for shard in index.shards:
        offsets, lengths, labels = records[start : start + shard.examples].T
        outside = (offsets < HEADER) | (lengths < 0) | (lengths > shard.bytes - FOOTER - offsets)
        if (outside | (labels < -1) | (labels >= max(1, len(index.class_names)))).any():
            raise ValueError(f"{RECORDS} contains positions outside the shards, or classes that do not exist")
        start += shard.examples


def _check_file(index: ShardIndex, shard: Shard) -> None:
    path = index.path(shard)
    if not storage.is_remote(path):
        real = os.path.realpath(path)
        if os.path.dirname(real) != os.path.realpath(index.folder):
            raise DataError(
                f"The shards of an index must lie in its folder; {path} is a link to {printable(real)}. Copy the file."
            )
    try:
        size = storage.facts(path).size
    except OSError as error:
        raise _damaged(index.folder, f"shard {shard.name} cannot be read: {error}") from error
    if size != shard.bytes:
        raise _damaged(index.folder, f"shard {shard.name} is truncated to {size:,} of {shard.bytes:,} bytes")


def _damaged(folder: str, what: str) -> DataError:
    return DataError(
        f"The shards in {folder} must match their {INDEX}: {what}. Copy the folder again, or pack the images again "
        "with swav-tf data shard --fresh."
    )


def shard_damage(index: ShardIndex, shard: Shard) -> str | None:
    """Return what is wrong with the bytes of a shard, None if their SHA-256 is that of the index."""
    try:
        with storage.opened(index.path(shard)) as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError as error:
        return printable(str(error))
    return None if same else "its SHA-256 differs from the index"
