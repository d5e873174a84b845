"""Images in tar archives: webdataset shards (`key.jpg` with `key.cls` or `key.json`), or archives of folders."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from swav_tf.data import storage
from swav_tf.data.columns import LABELS, find_column, number_classes
from swav_tf.data.container_files import COMPRESSED_TAR, TAR, container_files, short_names
from swav_tf.data.decode import DEFAULT, Decoding
from swav_tf.data.folders import is_wanted
from swav_tf.data.leftovers import LeftOut
from swav_tf.data.names import PackedNames
from swav_tf.plumbing.errors import DataError

_LABELED: Final = (".cls", ".json")  # files of a sample with its label
_NUMBERED: Final = re.compile(r"(^|[^a-zA-Z0-9])\d+$")  # shards, unlike archives of one class each


class _Image(NamedTuple):
    """An image: number of its archive, place in it, name, and label of its sample."""

    tar: int
    offset: int
    size: int
    name: str
    label: str | None

    def order(self) -> tuple[int, list[tuple[bool, str]]]:
        """Return the key of its place among all images: archive by archive, in the order of folders."""
        return self.tar, storage.visiting_order(self.name)


class TarSource:
    """The images of tar archives, in the order of a folder with the same names."""

    kind: Final = "tar"
    decoding: Decoding = DEFAULT

    def __init__(self, path: str, *, split: str, label_key: str) -> None:
        """Find the images and their labels: those of samples, else folders, else archives of one class each.

        Raises:
            DataError: an archive is compressed or damaged, there is no image, or most pictures are left out.
        """
        self._tars = container_files(path, TAR, split)
        self.left_out = LeftOut()
        images: list[_Image] = []
        for number, tar in enumerate(self._tars):
            with storage.opened(tar) as file:
                images += _images_in(file, tar, number, label_key, self.left_out)
        if not images:
            raise DataError(
                f"{path} must contain images. It has none; left out: {self.left_out or 'nothing'}."
            )
        self.left_out.report(path, len(images))
        images.sort(key=_Image.order)
        names = [image.name for image in images]
        if len({name.partition("/")[0] for name in names}) == 1 and all("/" in name for name in names):
            names = [name.partition("/")[2] for name in names]  # the folder that was packed
        stems = [name.removesuffix(".tar") for name in short_names(self._tars)]
        several = len(stems) > 1
        labels = [image.label for image in images]
        if not any(labels):
            folders = [name.rpartition("/")[0].partition("/")[0] for name in names]
            if several and not all(folders) and not any(map(_NUMBERED.search, stems)):
                folders = [stems[image.tar] for image in images]
            labels = (
                [folder or None for folder in folders] if all(folders) and len(set(folders)) > 1 else labels
            )
        self.class_names, self._labels = number_classes(labels)
        if several:
            names = [f"{stems[image.tar]}/{name}" for image, name in zip(images, names, strict=True)]
        self._names = PackedNames(names)
        self._places = np.array([image[:3] for image in images], np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """Return the encoded file of image `index`.

        Raises:
            OSError: the archive cannot be read, or ends before.
        """
        tar, offset, size = self._places[index].tolist()
        data = storage.read_range(self._tars[tar], offset, size)
        if len(data) < size:
            raise OSError(f"the archive ends within the image: it has {len(data)} of {size} bytes")
        return data

    def label(self, index: int) -> int:
        """Return the number of the class of image `index`, -1 without a label."""
        return int(self._labels[index])

    def image_name(self, index: int) -> str:
        """Return the path of image `index` in the archive, without the folder that was packed.

        With several archives it begins with the name of the archive.
        """
        return self._names[index]

    def facts(self, index: int) -> storage.FileFacts:
        """Return the size of image `index`, and the time of the last change of its archive."""
        tar, _, size = self._places[index].tolist()
        return storage.FileFacts(size, storage.facts(self._tars[tar]).changed_ns)

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and time of the last change of each archive."""
        return (str(storage.facts(tar)) for tar in self._tars)


def _images_in(file: Any, tar: str, number: int, label_key: str, left_out: LeftOut) -> list[_Image]:
    """Return the images of an archive, in its order; the archive is read from header to header."""
    if tar.lower().endswith(COMPRESSED_TAR):
        raise DataError(
            f"Tar archives must be uncompressed, for random access. Received: {tar}. Extract it, or "
            "decompress it (gunzip, unxz, bunzip2 or unzstd)."
        )
    images: list[_Image] = []
    labels: dict[str, str | None] = {}  # by key of the sample
    others: list[str] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            kept: list[Any] = vars(archive)["members"]
            while (member := archive.next()) is not None:
                kept.clear()  # a kilobyte each
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if name.endswith(_LABELED):
                    extracted = archive.extractfile(member)
                    content = extracted.read() if extracted is not None else b""
                    labels[_key(name)] = _label(f"{tar}: {name}", content, label_key) or labels.get(
                        _key(name)
                    )
                if name.endswith((*_LABELED, ".txt")):
                    others.append(name)
                elif is_wanted(name, left_out):
                    if not member.isreg():
                        left_out.add_picture("links, which an archive stores without their content", name)
                    elif not member.size:
                        left_out.add_picture("empty", name)
                    else:
                        images.append(_Image(number, member.offset_data, member.size, name, None))
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except tarfile.TarError as error:
        raise DataError(f"{tar} must be an intact tar archive. {error}. Copy it again.") from error
    keys = {_key(image.name) for image in images}
    for name in others:  # a sample's label and caption are no files that are left out
        if _key(name) not in keys:
            left_out.add(storage.name_of(name), name)
    return [image._replace(label=labels.get(_key(image.name))) for image in images]


def _key(name: str) -> str:
    """Return the key of the sample that a file is of: its path up to the first dot of its name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _label(place: str, content: bytes, label_key: str) -> str | None:
    """Return the label in a sample's `.cls` or `.json`, None if it has none."""
    if place.endswith(".cls"):
        return content.decode("utf-8", "replace").strip() or None
    try:
        values = json.loads(content)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    column = find_column(place, list(values), label_key, LABELS)
    value = values[column] if column is not None else None
    return str(value) if isinstance(value, str | int) else None
