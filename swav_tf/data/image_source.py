"""The interface of all image sources: numbered images with names and perhaps labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from swav_tf.data.augment import Image
from swav_tf.data.decode import DEFAULT, Decoding
from swav_tf.data.leftovers import LeftOut
from swav_tf.data.names import PackedNames
from swav_tf.data.storage import FileFacts


class ImageSource:
    """Numbered images, read in any order and from any thread.

    Attributes:
        kind: its `data.kind`; empty if recipes cannot name it.
        class_names: by label; empty if the source does not name its classes.
        decoding: how `read_image` decodes its files.
        left_out: skipped files that are not images, if the source reads files.
    """

    kind: str = ""
    class_names: tuple[str, ...] = ()
    decoding: Decoding = DEFAULT
    left_out: LeftOut | None = None
    _names: PackedNames | Sequence[str] | Mapping[int, str] = ()
    _labels: npt.NDArray[np.signedinteger] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes | Image:
        """Return image `index`: an encoded file, or uint8 RGB (height, width, 3).

        Raises:
            OSError: it cannot be read.
        """
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the class of image `index`, from 0; -1 if it has none."""
        return -1 if self._labels is None else int(self._labels[index])

    def labels(self, indices: Iterable[int] | None = None) -> npt.NDArray[np.int64]:
        """Return the classes of images, by default of all, (n,)."""
        chosen = range(len(self)) if indices is None else indices
        return np.array([self.label(int(index)) for index in chosen], np.int64)

    def image_name(self, index: int) -> str:
        """Return the name of image `index` in the source, such as a path relative to its folder."""
        return self._names[index]

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time, or a tag, of each file that images `indices` are read from."""
        return iter(())

    def facts(self, index: int) -> FileFacts:
        """Return the size of image `index` and the modification time of its file, for packing."""
        raise NotImplementedError
