"""In which order a run sees its images: a fresh permutation each epoch, a function of seed and epoch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_KEY = 2**64 - 1  # an image number that no source reaches: keeps this stream apart from the crops'


@lru_cache(maxsize=2)  # a batch's threads work on one epoch, or two at its seam
def epoch_order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The images 0..count-1 in the order of one epoch, (count,), read-only."""
    generator = np.random.Philox(
        key=np.array([seed, _KEY], np.uint64), counter=np.array([0, 0, 0, epoch], np.uint64)
    )
    order = np.random.Generator(generator).permutation(count)
    order.setflags(write=False)
    return order
