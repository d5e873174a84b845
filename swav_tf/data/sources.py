"""Where images come from: one small protocol, and the two sources that are folders of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from swav_tf.data import storage
from swav_tf.data.augment import Image
from swav_tf.data.decode import decode
from swav_tf.data.names import name_bytes
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
    with _within_reach(path):
        if data.kind == "tfrecord":
            from swav_tf.data.tfrecord import open_shards

            return open_shards(path, image_key=data.image_key, label_key=data.label_key)
        # Unlabelled training images still need labelled ones to be validated on.
        folders = data.kind == "class_folders" or validation
        return open_folder(path, kind="class_folders" if folders else "images")


def open_folder(path: str, *, kind: str) -> ClassFolders | ImageFolder:
    """The images below a folder, as `class_folders` or as `images`.

    Raises:
        DataError: if there are none, or they are out of reach.
    """
    with _within_reach(path):
        return ClassFolders(path) if kind == "class_folders" else ImageFolder(path)


@contextmanager
def _within_reach(path: str) -> Iterator[None]:
    """No permission, no network, a bucket of somebody else's, in words."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The images at {path} must be within reach: {error}. Check the path and who may read it."
        ) from error


def guess_kind(path: str) -> str:
    """How images at a path are most likely to be read, as `data.kind`; what is there decides, not its name.

    Raises:
        DataError: if it is out of reach.
    """
    if path == "digits":
        return path
    with _within_reach(path):
        folder = storage.local_or_remote(path)
        if not storage.is_folder(folder):
            return "tfrecord" if storage.matching(folder) else "class_folders"
        names = [name for name in storage.names_in(folder) if not name.startswith(".")]
        if any("tfrecord" in name or "-of-" in name for name in names):
            return "tfrecord"
        return "images" if any(name.lower().endswith(EXTENSIONS) for name in names) else "class_folders"


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
        names.update(name_bytes(source.image_name(index)) + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


class _Files:
    """Images that are files below a folder, each by its path relative to it."""

    def __init__(self, path: str | Path) -> None:
        self.root = _existing_folder(path)
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The file of image `index`."""
        return storage.read_file(storage.join(self.root, self._names[index]))

    def facts(self, index: int) -> storage.FileFacts:
        """Size and time of the last change of the file of image `index`."""
        return storage.facts(storage.join(self.root, self._names[index]))

    def image_name(self, index: int) -> str:
        """Path of image `index` relative to the folder; in class folders `<class>/<file>`."""
        return self._names[index]


class ImageFolder(_Files):
    """All images below a folder at any depth, in the order of their paths, unlabelled."""

    kind: Final = "images"
    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._names = list(_images_below(self.root))
        if not self._names:
            raise _no_image(self.root)

    def label(self, index: int) -> int:
        """-1: these images have no labels."""
        return -1


class ClassFolders(_Files):
    """One folder a class, `<root>/<class>/*.JPEG` as ImageNet comes; classes are numbered by sorted name."""

    kind: Final = "class_folders"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._labels: list[int] = []
        classes: list[str] = []
        for folder in _folders_in(self.root):
            names = [f"{folder}/{name}" for name in _images_below(storage.join(self.root, folder))]
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

    def label(self, index: int) -> int:
        """Number of the class of image `index`."""
        return self._labels[index]


def _given(value: str | None, field: str, meaning: str) -> str:
    if not value:
        raise DataError(f"{field} must be set: {meaning}")
    return value


def _existing_folder(path: str | Path) -> str:
    folder = storage.local_or_remote(path)
    if not storage.exists(folder):
        raise DataError(f"the folder of images must exist: {folder} does not. Check the path.")
    if not storage.is_folder(folder):
        raise DataError(
            f"images are read from a folder, but {folder} is a file. Give the folder that holds it."
        )
    return folder


def _no_image(folder: str) -> DataError:
    entries = len(storage.names_in(folder))
    what = "is empty" if entries == 0 else f"has {entries} entries, but no image at any depth"
    return DataError(f"the folder {folder} must hold images ({', '.join(EXTENSIONS)}, any case); it {what}.")


def _folders_in(folder: str) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted."""
    if storage.is_remote(folder):
        _, folders, _ = next(storage.walk(folder))
        return [name for name in folders if not name.startswith(".")]
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images_below(folder: str) -> Iterator[str]:
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

    if storage.is_remote(folder):
        yield from _remote_images_below(folder)
    else:
        yield from walk(folder, "")


def _remote_images_below(folder: str) -> Iterator[str]:
    """The same of an object store, in the same order; it knows no links."""
    for path, folders, files in storage.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = path[len(folder.rstrip("/")) :].lstrip("/")
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield f"{prefix}/{name}" if prefix else name
