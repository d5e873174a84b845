"""Images by position: what a source provides, and how one is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from swav_tf.data import storage
from swav_tf.data.augment import Image
from swav_tf.data.decode import decode
from swav_tf.data.folders import EXTENSIONS, ClassFolders, ImageFolder
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import name_bytes
from swav_tf.recipe.pretraining import Data


class ImageSource(Protocol):
    """Numbered images, read in any order and from any thread."""

    class_names: tuple[str, ...]  # empty when the source does not name its classes

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, index: int) -> bytes | Image:
        """Return image `index`: an encoded file, or uint8 RGB (height, width, 3)."""

    def label(self, index: int) -> int:
        """Return the class of image `index`, from 0; -1 if it has none."""

    def image_name(self, index: int) -> str:
        """Return the name of image `index` for messages: a path relative to the source."""

    def stamps(self) -> Iterator[str]:
        """Yield size and time, or a tag, of each file that the images are read from."""


def read_image(source: ImageSource, index: int) -> Image:
    """Return the pixels of an image of a source, uint8 RGB (height, width, 3).

    Raises:
        UndecodableImage: the pixels cannot be decoded.
        OSError: the file cannot be read.
    """
    data = source.read(index)
    return data if isinstance(data, np.ndarray) else decode(data)


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """Return what identifies these images: their number, and the SHA-256 of their names.

    `names_sha256` covers the names' bytes on disk, each followed by a zero byte. The facts of an
    `evaluate.images.ImageSet` have a field of that name over printable lines: the two do not compare.
    """
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(name_bytes(source.image_name(index)) + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


def contents_sha256(source: ImageSource) -> str:
    """Return the SHA-256 of size and time of the last change of all files of a source.

    It changes when a picture is replaced by another of the same name, which `fingerprint` does not notice.
    """
    digest = hashlib.sha256()
    for stamp in source.stamps():
        digest.update(stamp.encode() + b"\0")
    return digest.hexdigest()


def open_source(data: Data, *, validation: bool = False) -> ImageSource:
    """Open the images of a recipe's `data` section, or with `validation` its labeled validation images.

    Raises:
        DataError: the images are missing, or not of the kind in `data.kind`.
    """
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


def guess_kind(path: str) -> str:
    """Return the most likely `data.kind` of the images at a path, judged by its content.

    Raises:
        DataError: the path cannot be accessed.
    """
    if path == "digits":
        return path
    with _reachable(path):
        folder = storage.local_or_remote(path)
        if not storage.is_folder(folder):
            return "tfrecord" if storage.matching(folder) else "class_folders"
        names = [name for name in storage.names_in(folder) if not name.startswith(".")]
    if any("tfrecord" in name or "-of-" in name for name in names):
        return "tfrecord"
    return "images" if any(name.lower().endswith(EXTENSIONS) for name in names) else "class_folders"


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
