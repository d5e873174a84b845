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


def part_of_images(
    source: ImageSource, output: Path, number: int, count: int
) -> tuple[Subset, Path, dict[str, Any]]:
    """Return the images of part `number` of `count`, its folder, and what its index records about all images.

    Raises:
        UsageError: there are fewer images than parts, or the output has another packing.
    """
    total = len(source)
    if count > total:
        raise UsageError(
            f"Each part needs at least one image: {total:,} images. Received: --part {number}/{count}."
        )
    others = (part_counts(str(output)) if output.is_dir() else set()) - {count}
    if others or any((output / name).exists() for name in (INDEX, PLAN)):
        found = f"parts of {min(others)}" if others else "shards that are in no parts"
        raise UsageError(
            f"The output folder of --part must be empty or contain parts of the same total ({count}). Received: "
            f"{output}, which contains {found}. Choose another folder."
        )
    part = Subset(source, range(total * (number - 1) // count, total * number // count))
    whole = {"whole": fingerprint(source), WHOLE_LABELS: labels_sha256(source)}
    return part, output / part_name(number, count), {"part": f"{number}/{count}", **whole}


def labels_sha256(source: ImageSource) -> str:
    """Return the SHA-256 of the labels of all images and of the names of the classes."""
    labels = source.labels().astype("<i8", copy=False)
    return hashlib.sha256(labels.tobytes() + name_bytes("\0".join(source.class_names))).hexdigest()
