"""Some of a source's images, by a list: one name a line, as the SimCLR lists of 1 % and 10 % have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from swav_tf.data.augment import Image
from swav_tf.data.sources import ImageSource
from swav_tf.plumbing.errors import DataError

_SHOWN = 20


class Subset:
    """The images of a source at some indices, in their order; the classes stay the source's."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.class_names = source.class_names
        self._source, self._indices = source, [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes | Image:
        """Image `index` of the subset."""
        return self._source.read(self._indices[index])

    def label(self, index: int) -> int:
        """Its class."""
        return self._source.label(self._indices[index])

    def image_name(self, index: int) -> str:
        """Its name in the source."""
        return self._source.image_name(self._indices[index])


def draw_subset(source: ImageSource, *, share: float, seed: int) -> list[str]:
    """Names of a share of the images, the same share of each class, drawn at random, in the order of the source.

    Args:
        source: labelled images.
        share: of each class's images, 0 to 1; at least one is taken of each.
        seed: of the draw.

    Raises:
        DataError: images have no class, or a name that a list cannot hold.
    """
    labels = np.array([source.label(index) for index in range(len(source))])
    if (labels < 0).any():
        raise DataError(
            f"A share of each class needs images with classes. Received: {(labels < 0).sum():,} of "
            f"{len(labels):,} images without one."
        )
    draw = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        chosen += members[: max(1, round(share * len(members)))].tolist()
    names = [source.image_name(index) for index in sorted(chosen)]
    cruel = [name for name in names if name != name.strip() or len(name.splitlines()) != 1]
    if cruel:
        raise DataError(
            "A name in a list is one line without spaces at its ends. Received: "
            f"{', '.join(map(repr, cruel[:_SHOWN]))}. Rename these images."
        )
    return names


def read_subset(path: Path | str, source: ImageSource) -> Subset:
    """The images of a source that a list names, in the order of the source.

    A name is a path relative to the source, or its last part, as `n01440764_10026.JPEG`. Empty
    lines are passed over.

    Raises:
        DataError: the list cannot be read, is empty, names an image twice, one that is not there,
            or one that several images may be. Up to 20 of each are named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The list of a subset must be a readable text file. Received: {path}: {error}."
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(
            f"The list of a subset must name images, one a line. Received: {path}, which names none."
        )

    by_path = {source.image_name(index): index for index in range(len(source))}
    last_parts = Counter(name.rpartition("/")[2] for name in by_path)
    by_last_part = {name.rpartition("/")[2]: index for name, index in by_path.items()}
    chosen = Counter(by_path.get(name, by_last_part.get(name)) for name in names)
    wrong = {
        "are not among the images": [n for n in names if n not in by_path and n not in by_last_part],
        "may be several images": [n for n in names if n not in by_path and last_parts[n] > 1],
        "are named twice": [
            source.image_name(index) for index, times in chosen.items() if index is not None and times > 1
        ],
    }
    complaints = [
        f"{len(found):,} of {len(names):,} {what}: {', '.join(found[:_SHOWN])}{' ...' if len(found) > _SHOWN else ''}"
        for what, found in wrong.items()
        if found
    ]
    if complaints:
        raise DataError(
            f"Each line of {path} must name one image, by its path below the folder or its file name.\n  "
            + "\n  ".join(complaints)
        )
    return Subset(source, sorted(index for index in chosen if index is not None))
