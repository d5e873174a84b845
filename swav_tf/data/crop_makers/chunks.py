"""Images that travel together between processes, and what is made here of them. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LARGEST_CHUNK: Final = 16  # images

Chunk = list[npt.NDArray[Any]]  # of each crop group (images, count, size, size, 3), then classes (images,)
MakeRow = Callable[[int], list[Any]]  # crop groups and class of a place


def largest_chunk(images: int) -> int:
    """The largest part of at most LARGEST_CHUNK images that divides `images`."""
    return max(size for size in range(1, LARGEST_CHUNK + 1) if images % size == 0)


def make_chunk(make: MakeRow, places: Sequence[int]) -> Chunk:
    """The chunk of these places, made here."""
    return [np.stack(column) for column in zip(*map(make, places), strict=True)]


def mend_chunk(
    chunk: Chunk, readable: Sequence[bool], make: MakeRow, places: Sequence[int], *, good: Callable[[], None]
) -> None:
    """Makes here what another process could not read: it may be readable or have a stand-in. `good` counts the rest."""
    for row, place in enumerate(places):
        if readable[row]:
            good()
            continue
        for whole, one in zip(chunk, make(place), strict=True):
            whole[row] = one
