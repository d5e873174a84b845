"""What a source of images is, its images' pixels, and what tells its images from others. No TensorFlow."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.decode import decode
from swav_tf.data.names import name_bytes


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
