"""Read pickles of numbers, names and arrays without running anything in them.

A pickle is a program that may call any function. Here every function and class that it names is looked up in a table of
stand-ins, which only build arrays and plain data. Any other name is an error.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from swav_tf.plumbing.errors import SwavError

# NumPy's codes of number types in pickles of arrays.
_NUMPY_TYPES = {
    np.dtype(name).str[1:]: name
    for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
}


class WeightsError(SwavError):
    """Report a file of weights that is damaged, unsafe, of an unknown format, or does not fit its model."""


class Call:
    """A function that a pickle may call. It has no state that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


class PickledArray:
    """An array in a pickle. One of NumPy's is empty until the pickle sets its state, once."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray | None = None) -> None:
        self._array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if self._array is not None or not isinstance(dtype, _NumpyType):
            raise pickle.UnpicklingError("it sets the state of an array twice, or without a type")
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        shape = whole_numbers(shape)
        size, expected = len(raw), math.prod(shape) * np.dtype(dtype.name).itemsize
        if size != expected:
            raise pickle.UnpicklingError(f"an array of shape {shape} has {size} bytes, not {expected}")
        self._array = from_bytes(raw, dtype.name).reshape(shape, order="F" if fortran else "C")

    @property
    def array(self) -> np.ndarray:
        """The array."""
        if self._array is None:
            raise WeightsError("An array in the pickle has no content.")
        return self._array


class _PlainDict(dict[Any, Any]):
    """An ordered dictionary or a counter; its attributes are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Settings:
    """An `argparse.Namespace`, which training scripts save; its attributes are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """A `numpy.dtype`: a code, and the byte order in its state."""

    __slots__ = ("name",)

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in _NUMPY_TYPES:
            raise pickle.UnpicklingError(f"it contains an array of type {str(code)[:20]!r}, not of numbers")
        self.name = _NUMPY_TYPES[code]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(
                f"its arrays have byte order {str(state[1])[:20]!r}, not little-endian"
            )


def from_bytes(data: bytes, dtype: str) -> np.ndarray:
    """Return a flat array of little-endian numbers; bfloat16, which NumPy lacks, becomes float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Return sizes or strides from a pickle; UnpicklingError unless they are few integers of at least 0."""
    if not isinstance(values, (tuple, list)) or len(values) > 32:
        raise pickle.UnpicklingError("a tensor's shape is not a list of sizes")
    if any(type(value) is not int or value < 0 for value in values):
        raise pickle.UnpicklingError(f"a tensor's shape has an invalid size: {str(values)[:60]}")
    return tuple(values)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {str(encoding)[:20]!r}")
    return text.encode("latin1")


# What pickles of arrays and plain Python objects name.
PLAIN: dict[str, Any] = {
    "collections.OrderedDict": _PlainDict,
    "collections.Counter": _PlainDict,
    "argparse.Namespace": _Settings,
    "builtins.tuple": Call(tuple),
    "_codecs.encode": Call(_encode),
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": Call(_NumpyType),
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    PLAIN[f"{_core}.multiarray._reconstruct"] = Call(lambda *_: PickledArray())
    PLAIN[f"{_core}.multiarray.scalar"] = Call(lambda *_: None)  # a counter or an accuracy; not used


class _Reader(pickle.Unpickler):
    def __init__(
        self, data: bytes, allowed: Mapping[str, Any], storage: Callable[[Any], Any] | None, source: str
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._allowed, self._storage, self._source = allowed, storage, source

    def find_class(self, module: str, name: str) -> Any:
        name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name
        if name not in self._allowed:
            raise WeightsError(
                f"{self._source} is refused: it refers to {name}, and a file of weights may contain only arrays, "
                "numbers and names. No code was run. If you trust the file, load it in the project that wrote it and "
                "save only its state dictionary."
            )
        return self._allowed[name]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to data outside of itself")
        return self._storage(pid)


def read_pickle(
    file: IO[bytes],
    *,
    source: str,
    allowed: Mapping[str, Any] = PLAIN,
    storage: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the object in the pickle at the file's position, and move the position behind it.

    The pickle may name the functions and classes `allowed`, {full name: stand-in}, and refer to data outside of it
    that `storage` resolves.

    Raises:
        WeightsError: it names anything else, or is damaged.
    """
    start = file.tell()
    try:
        # The unpickler allocates the highest memo index that is named: four bytes could ask for 64 GB.
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise pickle.UnpicklingError("its memo has an invalid index")
        end = file.tell()
        file.seek(start)
        return _Reader(file.read(end - start), allowed, storage, source).load()
    except WeightsError:
        raise
    except Exception as error:  # a malformed pickle may raise anything
        raise WeightsError(f"{source} is damaged or not a pickle of arrays: {str(error)[:200]}.") from error
