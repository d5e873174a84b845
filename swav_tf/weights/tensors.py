"""A named tensor of a weights file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from swav_tf.plumbing.errors import SwavError


class WeightsError(SwavError):
    """A file of weights is damaged, unsafe, of an unknown kind, or does not fit; the message says which."""


# What weights may be stored as; all but float64 become float32 without a change of value.
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Tensor:
    """One array of a file.

    Attributes:
        name: as the file has it, for messages.
        shape: of the array that `read` gives.
        dtype: NumPy's name of the type, or `bfloat16`.
        read: gets the array out of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def transposed(self) -> Tensor:
        """The same with its axes in reverse order."""
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().T)

    def float32(self) -> np.ndarray:
        """The array as float32; what is too large for it becomes infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(self.read(), np.float32)

    @staticmethod
    def of(name: str, array: np.ndarray) -> Tensor:
        """An array that is in memory."""
        return Tensor(name, array.shape, array.dtype.name, lambda: array)


def from_bytes(data: bytes, dtype: str) -> np.ndarray:
    """A flat array of little-endian numbers; bfloat16, which NumPy lacks, comes as float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
