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


def read_image(source: ImageSource, index: int) -> Image:
    """The pixels of an image of a source, uint8 RGB (height, width, 3).

    Raises:
        UndecodableImage: if they cannot be decoded.
        OSError: if they cannot be read.
    """
    data = source.read(index)
    return data if isinstance(data, np.ndarray) else decode(data)


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """What tells these images from others: how many, and the SHA-256 of their names.

    `names_sha256` is over the names' bytes on disk, each ended by a zero byte. The facts of an
    `evaluate.images.ImageSet` have a field of that name over printable lines: the two do not compare.
    """
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(name_bytes(source.image_name(index)) + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


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


def _given(value: str | None, field: str, meaning: str) -> str:
    if not value:
        raise DataError(f"{field} must be set: {meaning}")
    return value
