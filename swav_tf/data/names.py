"""Image names in compressed blocks: at 10^7 images Python strings would take gigabytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from mmap import mmap
from typing import Final

import numpy as np

from swav_tf.plumbing.names import name_bytes, text_of

_BLOCK: Final = 32  # names that are compressed, and read, together
_FULL_BLOCK: Final = re.compile(rb"(?:[^\0]*\0){%d}" % _BLOCK)


class PackedNames:
    """Names by position. Those of ImageNet take 5 bytes each; they are arrays, which processes can share."""

    _last: tuple[int, list[bytes]]  # block that was read last: names are often read in their order

    def __init__(self, names: Iterable[str]) -> None:
        names = iter(names)
        self._pack(
            b"".join(name_bytes(name) + b"\0" for name in block)
            for block in iter(lambda: list(islice(names, _BLOCK)), [])
        )

    @classmethod
    def of(cls, contents: Iterable[bytes | mmap]) -> PackedNames:
        """Return the names in results of `to_bytes`, one after the other."""
        self = cls(())
        self._pack(_blocks_in(contents))
        return self

    def to_bytes(self) -> bytes:
        """Return all names, each followed by a zero byte."""
        return b"".join(map(self._block, range(len(self._ends))))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self._count:
            raise IndexError(index)
        number, place = divmod(index, _BLOCK)
        last, names = self._last
        if last != number:
            names = self._block(number).split(b"\0")
            self._last = number, names
        return text_of(names[place])

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(self._count))

    def _pack(self, blocks: Iterator[bytes]) -> None:
        packed, ends, self._count = bytearray(), [], 0
        for block in blocks:
            packed += zlib.compress(block, 1)
            ends.append(len(packed))
            self._count += block.count(b"\0")
        self._packed, self._ends = np.frombuffer(packed, np.uint8), np.array(ends, np.int64)
        self._last = -1, []

    def _block(self, number: int) -> bytes:
        start = self._ends[number - 1] if number else 0
        return zlib.decompress(self._packed[start : self._ends[number]].tobytes())


def _blocks_in(contents: Iterable[bytes | mmap]) -> Iterator[bytes]:
    rest = b""
    for content in contents:
        text = rest + content if rest else content
        end = 0
        for found in _FULL_BLOCK.finditer(text):
            yield found[0]
            end = found.end()
        rest = text[end:]
    if rest:
        yield rest
