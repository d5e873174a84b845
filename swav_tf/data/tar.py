"""Images in tar archives: webdataset shards (`key.jpg` with `key.cls` or `key.json`), or archives of folders."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from swav_tf.data import storage
from swav_tf.data.columns import LABELS, find_column, number_classes
from swav_tf.data.container_files import COMPRESSED_TAR, TAR, ContainerSource, container_files, short_names
from swav_tf.data.folders import is_wanted
from swav_tf.data.leftovers import LeftOut
from swav_tf.data.names import PackedNames
from swav_tf.plumbing.errors import DataError

_LABELED: Final = (".cls", ".json")  # files of a sample with its label
_NUMBERED: Final = re.compile(r"(^|[^a-zA-Z0-9])\d+$")  # shards, unlike archives of one class each


class TarSource(ContainerSource):
    """The images of tar archives, archive by archive, each in the order of a folder with the same names.

    Names are paths in the archive, without the folder that was packed; with several archives they begin with the name
    of the archive.
    """

    kind = "tar"

    def __init__(self, path: str, *, split: str, label_key: str) -> None:
        """Find the images and their labels: those of samples, else folders, else archives of one class each."""
        self._files = container_files(path, TAR, split)
        self.left_out = left_out = LeftOut()
        tables, labels = [np.empty((0, 3), np.int64)], list[str | None]()

        def names() -> Iterator[str]:
            for number, tar in enumerate(self._files):
                with storage.opened(tar) as file:
                    found = _images_in(file, tar, label_key, left_out)
                ordered = sorted(found.rows, key=storage.visiting_order)
                rows = np.array([found.rows[name] for name in ordered], np.int64)
                places = np.array(found.places, np.int64).reshape(-1, 2)[rows]
                tables.append(np.insert(places, 0, number, axis=1))
                labels.extend(found.labels.get(_key(name)) for name in ordered)
                yield from ordered

        paths = PackedNames(names())
        if not len(paths):
            raise DataError(f"{path} must contain images. It has none; left out: {left_out or 'nothing'}.")
        left_out.report(path, len(paths))
        self._places = np.concatenate(tables)
        top = paths[0].partition("/")[0] + "/"
        # Without the folder that was packed.
        cut = len(top) if all(name.startswith(top) for name in paths) else 0
        stems = [name.removesuffix(".tar") for name in short_names(self._files)]
        if not any(labels):
            folders = [sys.intern(name[cut:].rpartition("/")[0].partition("/")[0]) for name in paths]
            if len(stems) > 1 and not all(folders) and not any(map(_NUMBERED.search, stems)):
                folders = [stems[tar] for tar in self._places[:, 0]]
            if all(folders) and len(set(folders)) > 1:
                labels = list(folders)
        self.class_names, self._labels = number_classes(labels)
        if len(stems) > 1:
            tars = self._places[:, 0]
            paths = PackedNames(f"{stems[tar]}/{name[cut:]}" for tar, name in zip(tars, paths, strict=True))
        elif cut:
            paths = PackedNames(name[cut:] for name in paths)
        self._names = paths

    def read(self, index: int) -> bytes:
        """Return the encoded file of image `index`."""
        tar, offset, size = self._places[index].tolist()
        data = storage.read_range(self._files[tar], offset, size)
        if len(data) < size:
            raise OSError(f"the archive ends within the image: it has {len(data)} of {size} bytes")
        return data

    def facts(self, index: int) -> storage.FileFacts:
        """Return the size of image `index`, and the modification time of its archive."""
        tar, _, size = self._places[index].tolist()
        return storage.FileFacts(size, storage.facts(self._files[tar]).changed_ns)


class _Found(NamedTuple):
    rows: dict[str, int]  # of images by name, in `places`
    places: array[int]  # (n, 2), offset and size
    labels: dict[str, str | None]  # by key of the sample


def _images_in(file: Any, tar: str, label_key: str, left_out: LeftOut) -> _Found:
    """Return the images of an archive, of which only headers and labels are read."""
    if tar.lower().endswith(COMPRESSED_TAR):
        raise DataError(
            f"Tar archives must be uncompressed, for random access. Received: {tar}. Extract it, or "
            "decompress it (gunzip, unxz, bunzip2 or unzstd)."
        )
    images, places, labels = found = _Found({}, array("q"), {})
    others: list[str] = []
    try:
        for archive, member in _members(file):
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if name.endswith(_LABELED):
                extracted = archive.extractfile(member)
                content = extracted.read() if extracted is not None else b""
                label = _label(f"{tar}: {name}", content, label_key)
                labels[_key(name)] = label or labels.get(_key(name))
            if name.endswith((*_LABELED, ".txt")):
                others.append(name)
            elif is_wanted(name, left_out):
                if images.pop(name, None) is not None:  # as when it is unpacked
                    left_out.add_reason("replaced by a later image of the same name", name)
                if not member.isreg():
                    left_out.add_picture("links, which an archive stores without their content", name)
                elif not member.size:
                    left_out.add_picture("empty", name)
                else:
                    images[name] = len(places) // 2
                    places.extend((member.offset_data, member.size))
    except tarfile.TarError as error:
        raise DataError(f"{tar} must be an intact tar archive. {error}. Copy it again.") from error
    keys = set(map(_key, images)) if others else set()
    for name in others:  # a sample's label and caption do not count as skipped files
        if _key(name) not in keys:
            left_out.add(storage.name_of(name), name)
    return found


def _members(file: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an archive, and of others that `cat` appended to it."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            kept: list[Any] = vars(archive)["members"]
            while (member := archive.next()) is not None:
                kept.clear()  # a kilobyte each
                yield archive, member
            if start and archive.offset == start:
                raise tarfile.ReadError(f"no header at byte {start}")
            start = _next_header(file, archive.offset)


def _next_header(file: Any, offset: int) -> int | None:
    """Return the offset of the first block, from an offset on, that is not all zeros; None if there is none."""
    file.seek(offset)
    while data := file.read(1 << 20):
        if rest := data.lstrip(b"\0"):
            return (offset + len(data) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(data)
    return None


def _key(name: str) -> str:
    """Return the key of a file's sample: its path up to the first dot of its name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _label(place: str, content: bytes, label_key: str) -> str | None:
    """Return the label in a sample's `.cls` or `.json`, None if it has none."""
    if place.endswith(".cls"):
        return sys.intern(content.decode("utf-8", "replace").strip()) or None
    try:
        values = json.loads(content)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    column = find_column(place, list(values), label_key, LABELS)
    value = values[column] if column is not None else None
    whole = isinstance(value, float) and value.is_integer()
    return sys.intern(str(value)) if whole or isinstance(value, str | int) else None
