"""Image names as bytes: at 10^7 images Python strings would take gigabytes in every process."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from swav_tf.plumbing.names import name_bytes


def pack_names(names: Iterable[str]) -> bytes:
    """Return the bytes of all names, each followed by a zero byte."""
    packed = bytearray()
    for name in names:
        packed += name_bytes(name) + b"\0"
    return bytes(packed)


class PackedNames:
    """The names in the result of `pack_names`, by position. They cost 8 bytes each beyond their own."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._ends = np.flatnonzero(np.frombuffer(packed, np.uint8) == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] + 1 if index > 0 else 0
        return self._packed[start : self._ends[index]].decode("utf-8", "surrogateescape")
