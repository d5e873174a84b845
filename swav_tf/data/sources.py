"""Where images come from: one small protocol, and the two sources that are folders of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.decode import decode
from swav_tf.errors import DataError
from swav_tf.recipe import Data

EXTENSIONS: Final = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


class ImageSource(Protocol):
    """Numbered images, read in any order and from any thread."""

    class_names: tuple[str, ...]  # empty when the source does not name its classes

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(self, index: int) -> bytes | Image:
        """Image `index`: an encoded file, or uint8 RGB (height, width, 3)."""
        ...

    def label(self, index: int) -> int:
        """Class of image `index`, from 0; -1 when it has none."""
        ...

    def image_name(self, index: int) -> str:
        """Name of image `index` for messages: a path relative to the source."""
        ...


def open_source(data: Data, *, validation: bool = False) -> ImageSource:
    """The images that a recipe's `data` section names, or with `validation` the labelled ones beside them.

    Raises:
        DataError: if they are missing, or not what `data.kind` says.
    """
    if data.kind in ("digits", "tfds"):
        split = data.validation_split if validation else data.split
        if split is None:
            raise DataError("data.validation_split must name a split to validate on; it is not set")
        if data.kind == "digits":
            from swav_tf.data.digits import Digits

            return Digits(split)
        from swav_tf.data.tfds import open_tfds

        return open_tfds(_given(data.path, "data.path", "the name of a TensorFlow Datasets data set"), split)
    if validation:
        path = _given(data.validation_path, "data.validation_path", "labelled images to validate on")
    else:
        path = _given(data.path, "data.path", "the folder of the images")
    if data.kind == "tfrecord":
        from swav_tf.data.tfrecord import TFRecordSource, find_shards

        return TFRecordSource(find_shards(path), image_key=data.image_key, label_key=data.label_key)
    # Unlabelled training images still need labelled ones to be validated on.
    return ClassFolders(path) if data.kind == "class_folders" or validation else ImageFolder(path)


def read_image(source: ImageSource, index: int) -> Image:
    """The pixels of an image of a source, uint8 RGB (height, width, 3).

    Raises:
        UndecodableImage: if they cannot be decoded.
        OSError: if they cannot be read.
    """
    data = source.read(index)
    return data if isinstance(data, np.ndarray) else decode(data)


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """What tells these images from others: how many, and the SHA-256 of their names."""
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(source.image_name(index).encode("utf-8", "surrogateescape") + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


class ImageFolder:
    """All images below a folder at any depth, in the order of their paths, unlabelled."""

    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        self.root = _existing_folder(path)
        self._names = list(_images_below(self.root))
        if not self._names:
            raise _no_image(self.root)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The file of image `index`."""
        return _read_file(self.root, self._names[index])

    def label(self, index: int) -> int:
        """-1: these images have no labels."""
        return -1

    def image_name(self, index: int) -> str:
        """Path of image `index` relative to the folder."""
        return self._names[index]


class ClassFolders:
    """One folder a class, `<root>/<class>/*.JPEG` as ImageNet comes; classes are numbered by sorted name."""

    def __init__(self, path: str | Path) -> None:
        self.root = _existing_folder(path)
        folders = sorted(e.name for e in os.scandir(self.root) if e.is_dir() and not e.name.startswith("."))
        self._names: list[str] = []
        self._labels: list[int] = []
        classes: list[str] = []
        for folder in folders:
            names = [f"{folder}/{name}" for name in _images_below(self.root / folder)]
            if names:
                self._names += names
                self._labels += [len(classes)] * len(names)
                classes.append(folder)
        self.class_names = tuple(classes)
        if not classes:
            if next(_images_below(self.root), None) is not None:
                raise DataError(
                    f"data.kind class_folders needs one folder for each class, but {self.root} holds its "
                    "images itself. Set data.kind to images if they have no labels, or make class folders."
                )
            raise _no_image(self.root)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The file of image `index`."""
        return _read_file(self.root, self._names[index])

    def label(self, index: int) -> int:
        """Number of the class of image `index`."""
        return self._labels[index]

    def image_name(self, index: int) -> str:
        """Path of image `index` relative to the root: `<class>/<file>`."""
        return self._names[index]


def _given(value: str | None, field: str, meaning: str) -> str:
    if not value:
        raise DataError(f"{field} must be set: {meaning}")
    return value


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.exists():
        raise DataError(f"the folder of images must exist: {folder} does not. Check data.path.")
    if not folder.is_dir():
        raise DataError(
            f"images are read from a folder, but {folder} is a file. Give the folder that holds it."
        )
    return folder


def _no_image(folder: Path) -> DataError:
    entries = sum(1 for _ in os.scandir(folder))
    what = "is empty" if entries == 0 else f"has {entries} entries, but no image at any depth"
    return DataError(f"the folder {folder} must hold images ({', '.join(EXTENSIONS)}, any case); it {what}.")


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of all images below a folder, relative to it, sorted within each folder.

    Hidden files are left out: a Mac leaves `._name.JPEG` beside every `name.JPEG` it
    copies. Linked folders are followed, but never round a loop.
    """
    seen: set[str] = set()

    def walk(path: str, prefix: str) -> Iterator[str]:
        folders, files = [], []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    files.append(entry.name)
                elif entry.is_dir():
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if target in seen or path.startswith(target):
                            continue
                        seen.add(target)
                    folders.append(entry.name)
        for name in sorted(files):
            yield prefix + name
        for name in sorted(folders):
            yield from walk(f"{path}/{name}", f"{prefix}{name}/")

    yield from walk(str(folder), "")


def _read_file(root: Path, name: str) -> bytes:
    with open(f"{root}/{name}", "rb") as file:
        return file.read()
