"""Image names as one array of bytes: at 10^7 images Python strings would take gigabytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from swav_tf.plumbing.names import name_bytes, text_of


def pack_names(names: Iterable[str]) -> bytes:
    """Return the bytes of all names, each followed by a zero byte."""
    packed = bytearray()
    for name in names:
        packed += name_bytes(name) + b"\0"
    return bytes(packed)


class PackedNames:
    """The names in the result of `pack_names`, by position. They cost 4 bytes each beyond their own.

    Attributes:
        packed: the result of `pack_names`, uint8. An array, which processes can share (`swav_tf.data.workers`).
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = np.frombuffer(packed, np.uint8)
        size = np.uint32 if len(packed) < 2**32 else np.int64
        self._ends = np.flatnonzero(self.packed == 0).astype(size)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index > 0 else 0
        return text_of(self.packed[start : self._ends[index]].tobytes())
