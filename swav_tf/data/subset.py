"""Some of a source's images, by a list with one name per line, like SimCLR's lists of 1 % and 10 % of ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from swav_tf.data.augment import Image
from swav_tf.data.image_source import ImageSource
from swav_tf.data.storage import FileFacts
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import read_lines
from swav_tf.plumbing.log import log


class Subset(ImageSource):
    """The images of a source at some indices, in their order, with the classes of the source."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.kind, self.class_names, self.decoding = source.kind, source.class_names, source.decoding
        self.left_out = source.left_out
        self._source, self._indices = source, np.array(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes | Image:
        """Return image `index` of the subset."""
        return self._source.read(int(self._indices[index]))

    def label(self, index: int) -> int:
        """Return its class."""
        return self._source.label(int(self._indices[index]))

    def image_name(self, index: int) -> str:
        """Return its name in the source."""
        return self._source.image_name(int(self._indices[index]))

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield those of the complete source."""
        return self._source.stamps(range(len(self._source)))

    def facts(self, index: int) -> FileFacts:
        """Return its size, and the modification time of its file."""
        return self._source.facts(int(self._indices[index]))


def draw_subset(source: ImageSource, *, share: float, seed: int) -> list[str]:
    """Return the names of a random share (0 to 1) of each class's images, at least one, in the source's order.

    Images without a class are left out, with a warning.

    Raises:
        DataError: no image has a class, or one has a name that a list cannot contain.
    """
    labels = source.labels()
    if unlabeled := int((labels < 0).sum()):
        without = f"{unlabeled:,} of {len(labels):,} images have no class"
        if unlabeled == len(labels):
            raise DataError(f"A share of each class needs images with classes. Received: {without}.")
        log.warning(f"{without}; they are left out.")
    draw = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(labels[labels >= 0]):
        members = draw.permutation(np.flatnonzero(labels == label))
        chosen += members[: max(1, round(share * len(members)))].tolist()
    names = [source.image_name(index) for index in sorted(chosen)]
    unusable = [
        name for name in names if name != name.strip() or len(name.splitlines()) != 1 or not _is_utf_8(name)
    ]
    if unusable:
        raise DataError(
            "A name in a list must be one line of UTF-8 without spaces at its ends. Received: "
            f"{first_of(map(repr, unusable))}. Rename these images."
        )
    return names


def _is_utf_8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def read_subset(path: Path | str, source: ImageSource) -> Subset:
    """Return the images of a source that a list names, in the order of the source.

    Names and errors are those of `find_images`; an empty list is an error as well.
    """
    names = read_lines(path, "The list of a subset")
    if not names:
        raise DataError(f"A subset list must name images, one per line. {path} contains no names.")

    return Subset(source, sorted(index for index in find_images(names, source, path) if index is not None))


def find_images(
    names: Sequence[str], source: ImageSource, path: Path | str, *, partly: bool = False
) -> list[int | None]:
    """Return the index of each image that a list at `path` names.

    A name is a path in the source, or the last part of one, with its ending or without. With `partly`, None stands
    for a name of no image.

    Raises:
        DataError: names are missing, ambiguous or repeated; up to 20 of each are shown.
    """
    by_path = {source.image_name(index): index for index in range(len(source))}
    names = [name if name in by_path else name.replace("\\", "/").removeprefix("./") for name in names]
    last_parts, by_last_part = Counter[str](), dict[str, int]()
    for name, index in by_path.items():
        file = name.rpartition("/")[2]
        for part in {file, file.rpartition(".")[0] or file}:
            last_parts[part] += 1
            by_last_part[part] = index
    found = [by_path.get(name, by_last_part.get(name)) for name in names]
    wrong = {
        "are not among the images": [
            n for n, i in zip(names, found, strict=True) if i is None and not partly
        ],
        "may be several images": [n for n in names if n not in by_path and last_parts[n] > 1],
        "are named twice": [
            source.image_name(i) for i, times in Counter(found).items() if i is not None and times > 1
        ],
    }
    lines = [f"  {len(n):,} of {len(names):,} {what}: {first_of(n)}" for what, n in wrong.items() if n]
    if lines:
        must = f"Each line of {path} must name one image, by its path below the folder or its file name."
        example = f"  An image's name is, for example, {next(iter(by_path))}."
        raise DataError("\n".join([must, *lines, example]))
    return found


def first_of(names: Iterable[str]) -> str:
    """Return the first 20 names of a list for a message."""
    found = list(names)
    return ", ".join(found[:20]) + (" ..." if len(found) > 20 else "")
