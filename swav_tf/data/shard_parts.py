"""A part of a packing: some of the images, in a folder of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from swav_tf.data.image_source import ImageSource
from swav_tf.data.shard_index import INDEX, PLAN, WHOLE_LABELS, part_counts
from swav_tf.data.sources import fingerprint
from swav_tf.data.subset import Subset
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.names import name_bytes
from swav_tf.plumbing.parts import part_name


class PartOfImages(Subset):
    """The images of part `number` of `count`, from 1, in the order of the source.

    Raises:
        UsageError: there are fewer images than parts.
    """

    def __init__(self, source: ImageSource, number: int, count: int) -> None:
        total = len(source)
        if count > total:
            raise UsageError(
                f"Each part needs at least one image: {total:,} images. Received: --part {number}/{count}."
            )
        super().__init__(source, range(total * (number - 1) // count, total * number // count))
        self._number, self._count = number, count

    def identity(self) -> dict[str, Any]:
        """Return what an index records about the part and about all images."""
        return {
            "part": f"{self._number}/{self._count}",
            "whole": fingerprint(self._source),
            WHOLE_LABELS: labels_sha256(self._source),
        }

    def folder_in(self, output: Path) -> Path:
        """Return the folder of the part.

        Raises:
            UsageError: the output has another packing.
        """
        others = (part_counts(str(output)) if output.is_dir() else set()) - {self._count}
        if others or any((output / name).exists() for name in (INDEX, PLAN)):
            found = f"parts of {min(others)}" if others else "shards that are in no parts"
            raise UsageError(
                f"The output of --part must be empty or contain other parts of {self._count}. Received: {output}, with "
                f"{found}. Choose another folder."
            )
        return output / part_name(self._number, self._count)


def labels_sha256(source: ImageSource) -> str:
    """Return the SHA-256 of the labels of all images and of the names of the classes."""
    labels = source.labels().astype("<i8", copy=False)
    return hashlib.sha256(labels.tobytes() + name_bytes("\0".join(source.class_names))).hexdigest()
