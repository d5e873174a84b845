"""Open the images that a recipe names."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np

from swav_tf.data import storage
from swav_tf.data.augment import Image
from swav_tf.data.decode import Decoding, decode
from swav_tf.data.digits import Digits
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.image_source import ImageSource
from swav_tf.data.lists import ListedImages, RelabeledImages
from swav_tf.data.parquet import ParquetSource
from swav_tf.data.recognition import NOT_FOUND, recognize
from swav_tf.data.tar import TarSource
from swav_tf.data.tfds import open_tfds
from swav_tf.data.tfrecord import open_shards
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import name_bytes
from swav_tf.recipe.data import SPLIT_KINDS, Data


def read_image(source: ImageSource, index: int) -> Image:
    """Return the pixels of an image of a source, uint8 RGB (height, width, 3).

    Raises:
        UndecodableImage: the pixels cannot be decoded.
        OSError: the file cannot be read.
    """
    data = source.read(index)
    return data if isinstance(data, np.ndarray) else decode(data, source.decoding)


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """Identify the images by their number and the SHA-256 of their names.

    `names_sha256` covers the names' bytes on disk, each followed by a zero byte.
    """
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(name_bytes(source.image_name(index)) + b"\0")
    return {"images": len(source), "names_sha256": names.hexdigest()}


def contents_sha256(source: ImageSource, indices: range | None = None) -> str:
    """Return the SHA-256 of the sizes and modification times of all files of a source, or of those of some images.

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
    data = validation_settings(data) if validation else recognized(data)
    source = _open(data)
    if data.labels is not None:
        if data.kind in ("class_folders", "digits", "tfds"):
            raise DataError(
                f"data.labels is for images without labels of their own. Received: {data.labels}, data.kind "
                f"{data.kind}. Set data.kind=images, or data.labels=null."
            )
        with storage.reachable(data.labels):
            source = RelabeledImages(source, data.labels, image_key=data.image_key, label_key=data.label_key)
    source.decoding = Decoding.of(data)
    return source


def recognized(data: Data) -> Data:
    """Return settings with the kind of the images in place of `auto`.

    Raises:
        DataError: the path is not set, cannot be accessed, or has no images.
    """
    if data.kind != "auto":
        return data
    path = _required(data.path, "data.path", "the folder of the images")
    found = recognize(path, labels=data.labels)
    if found != NOT_FOUND and found.kind != "digits":
        log_once(logging.INFO, f"{path} is read as {found.kind}: {found.why}.")
    return data.model_copy(update={"kind": found.kind, "path": None if found.kind == "digits" else path})


def validation_settings(data: Data) -> Data:
    """Return the settings of the labeled validation images, of which `path`, `kind` and `split` are their own.

    Raises:
        DataError: the settings do not name them, or they cannot be accessed.
    """
    if data.validation_path is None and data.validation_split is not None:
        data = recognized(data)
    if data.kind in ("digits", "tfds") or (data.kind in SPLIT_KINDS and data.validation_path is None):
        split = _required(data.validation_split, "data.validation_split", "a split to validate on")
        return data.model_copy(update={"split": split})
    meaning = "labeled images to validate on"
    if data.validation_split:  # of a recipe whose data.kind was changed
        meaning += f"; or data.validation_split=null, which data.kind={data.kind} does not use"
    path = _required(data.validation_path, "data.validation_path", meaning)
    kind = recognize(path).kind
    # Validation needs labels: the error of class folders explains what is wrong with unlabeled images.
    kind = "class_folders" if kind == "images" else kind
    own = {"kind": kind, "path": path, "labels": None, "split": data.validation_split or ""}
    return data.model_copy(update=own)


def _open(data: Data) -> ImageSource:
    if data.kind == "digits":
        return Digits(data.split)
    if data.kind == "tfds":
        return open_tfds(_required(data.path, "data.path", "the name of a TFDS data set"), data.split)
    path = _required(data.path, "data.path", "the folder of the images")
    keys = {"image_key": data.image_key, "label_key": data.label_key}
    with storage.reachable(path):
        if data.kind == "tfrecord":
            return open_shards(path, **keys)
        if data.kind == "tar":
            return TarSource(path, split=data.split, label_key=data.label_key)
        if data.kind == "parquet":
            return ParquetSource(path, split=data.split, **keys)
        if data.kind == "list":
            return ListedImages(path, **keys)
        return ClassFolders(path) if data.kind == "class_folders" else ImageFolder(path)


def _required(value: str | None, field: str, meaning: str) -> str:
    if not value:
        raise DataError(f"{field} must be set: {meaning}.")
    return value
