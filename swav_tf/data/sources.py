"""Images by position: what a source provides, and how one is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from swav_tf.data import storage
from swav_tf.data.augment import Image
from swav_tf.data.decode import Decoding, decode
from swav_tf.data.folders import ClassFolders, ImageFolder, has_images, is_image
from swav_tf.data.leftovers import is_system
from swav_tf.data.shard_index import is_shard
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import name_bytes, printable
from swav_tf.recipe.pretraining import Data


class ImageSource(Protocol):
    """Numbered images, read in any order and from any thread."""

    class_names: tuple[str, ...]  # empty when the source does not name its classes
    decoding: Decoding  # how `read_image` decodes its files

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, index: int) -> bytes | Image:
        """Return image `index`: an encoded file, or uint8 RGB (height, width, 3)."""

    def label(self, index: int) -> int:
        """Return the class of image `index`, from 0; -1 if it has none."""

    def image_name(self, index: int) -> str:
        """Return the name of image `index` for messages: a path relative to the source."""

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and time, or a tag, of each file that images `indices` are read from."""


def read_image(source: ImageSource, index: int) -> Image:
    """Return the pixels of an image of a source, uint8 RGB (height, width, 3).

    Raises:
        UndecodableImage: the pixels cannot be decoded.
        OSError: the file cannot be read.
    """
    data = source.read(index)
    return data if isinstance(data, np.ndarray) else decode(data, source.decoding)


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """Return what identifies these images: their number, and the SHA-256 of their names.

    `names_sha256` covers the names' bytes on disk, each followed by a zero byte. The facts of an
    `evaluate.images.ImageSet` have a field of that name over printable lines: the two do not compare.
    """
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(name_bytes(source.image_name(index)) + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


def contents_sha256(source: ImageSource, indices: range | None = None) -> str:
    """Return the SHA-256 of size and time of the last change of all files of a source, or of those of some images.

    It changes when a picture is replaced by another of the same name, which `fingerprint` does not notice.
    """
    digest = hashlib.sha256()
    for stamp in source.stamps(range(len(source)) if indices is None else indices):
        digest.update(stamp.encode() + b"\0")
    return digest.hexdigest()


def open_source(data: Data, *, validation: bool = False) -> ImageSource:
    """Open the images of a recipe's `data` section, or with `validation` its labeled validation images.

    Raises:
        DataError: the images are missing, or not of the kind in `data.kind`.
    """
    source = _open(data, validation)
    source.decoding = Decoding.of(data)
    return source


def _open(data: Data, validation: bool) -> ImageSource:
    if data.kind in ("digits", "tfds"):
        split = data.split
        if validation:
            split = _required(data.validation_split, "data.validation_split", "a split to validate on")
        if data.kind == "digits":
            from swav_tf.data.digits import Digits

            return Digits(split)
        from swav_tf.data.tfds import open_tfds

        return open_tfds(_required(data.path, "data.path", "the name of a TFDS data set"), split)
    if validation:
        meaning = "labeled images to validate on"
        if data.validation_split:  # of a recipe whose data.kind was changed
            meaning += f"; or data.validation_split=null, which data.kind={data.kind} does not use"
        path = _required(data.validation_path, "data.validation_path", meaning)
    else:
        path = _required(data.path, "data.path", "the folder of the images")
    if data.kind == "tfrecord":
        from swav_tf.data.tfrecord import open_shards

        with _reachable(path):
            return open_shards(path, image_key=data.image_key, label_key=data.label_key)
    # Validation needs labels, also when the training images have none.
    return open_folder(path, kind="class_folders" if validation else data.kind)


def open_folder(path: str, *, kind: str) -> ClassFolders | ImageFolder:
    """Open the images below a folder, as `class_folders` or as `images`.

    Raises:
        DataError: there are none, or they cannot be accessed.
    """
    with _reachable(path):
        return ClassFolders(path) if kind == "class_folders" else ImageFolder(path)


class Found(NamedTuple):
    """The kind of the images at a path, and why."""

    kind: Literal["class_folders", "images", "tfrecord", "digits"]
    why: str


def recognize(path: str) -> Found:
    """Recognize the `data.kind` of the images at a path by its content.

    Folders are taken for classes only if that leaves out no image: none is next to them.

    Raises:
        DataError: the path cannot be accessed.
    """
    if path == "digits":
        return Found("digits", "bundled")
    with _reachable(path):
        folder = storage.local_or_remote(path)
        if not storage.is_folder(folder):
            shards = bool(storage.matching(folder))
            return Found("tfrecord", "a pattern of shards") if shards else Found("class_folders", "not found")
        names = [name for name in storage.names_in(folder) if not (name.startswith(".") or is_system(name))]
        images = any(map(is_image, names))
        if not images and any(map(is_shard, names)):
            return Found("tfrecord", "it contains shards")
        if storage.is_remote(folder):
            return Found("images", "images at the top") if images else Found("class_folders", "folders")
        inside = (name for name in names if os.path.isdir(storage.join(folder, name)))
        classes = list(islice((name for name in inside if has_images(folder, name)), 2 if not images else 1))
    if images:
        why = "images at the top and in folders: all are read" if classes else "images without folders"
        return Found("images", f"{why}, without labels")
    if not classes:
        return Found("images", "no image was found")
    if len(classes) == 1:
        return Found("images", f"one folder with images, {printable(classes[0])}: no classes, no labels")
    return Found("class_folders", "one folder for each class")


@contextmanager
def _reachable(path: str) -> Iterator[None]:
    """Report a missing permission, a network failure or a closed bucket."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The images at {path} cannot be accessed: {error}. Check the path and its permissions."
        ) from error


def _required(value: str | None, field: str, meaning: str) -> str:
    if not value:
        raise DataError(f"{field} must be set: {meaning}.")
    return value
