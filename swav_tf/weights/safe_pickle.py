"""Reads pickles that hold numbers, names and arrays, and refuses all others by the name of what they ask for.

A pickle is a program that may call any function. Here every function and class it asks for is looked
up in a table of stand-ins that only note down what is described; nothing of the real modules is
imported or called. What the table lacks ends the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from swav_tf.weights.tensors import Tensor, WeightsError, from_bytes

# NumPy's codes of number types, as pickles of arrays spell them.
_NUMPY_TYPES = {
    np.dtype(name).str[1:]: name
    for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
}


class Call:
    """The stand-in of a function: what a pickle calls by that name. Its state cannot be set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Calls the stand-in's function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


class PlainDict(dict[Any, Any]):
    """The stand-in of ordered dictionaries and counters; attributes they were saved with are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """A `numpy.dtype` as pickled: code first, byte order in the state."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in _NUMPY_TYPES:
            raise pickle.UnpicklingError(f"it holds an array of type {str(code)[:20]!r}, not of numbers")
        self.name = _NUMPY_TYPES[code]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(
                f"its arrays have byte order {str(state[1])[:20]!r}, not little-endian"
            )


class PickledArray:
    """A `numpy.ndarray` as pickled; empty until its state comes."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        if not isinstance(dtype, _NumpyType):
            raise pickle.UnpicklingError("it holds an array without a type")
        shape = whole_numbers(shape)
        size, expected = len(raw), math.prod(shape) * np.dtype(dtype.name).itemsize
        if size != expected:
            raise pickle.UnpicklingError(f"an array of shape {shape} has {size} bytes, not {expected}")
        order: Any = "F" if fortran else "C"
        array = from_bytes(raw, dtype.name).reshape(shape, order=order)
        self._tensor = Tensor.of("", array)

    @property
    def tensor(self) -> Tensor:
        """The array.

        Raises:
            WeightsError: the pickle never filled it.
        """
        if self._tensor is None:
            raise WeightsError("An array in the pickle has no content.")
        return self._tensor


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Sizes or strides out of a pickle.

    Raises:
        UnpicklingError: they are none.
    """
    if not isinstance(values, (tuple, list)) or len(values) > 32:
        raise pickle.UnpicklingError("a tensor's shape is no list of sizes")
    if any(type(value) is not int or value < 0 for value in values):
        raise pickle.UnpicklingError(f"a tensor's shape has a size that is none: {str(values)[:60]}")
    return tuple(values)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {str(encoding)[:20]!r}")
    return text.encode("latin1")


# What pickles of arrays and plain Python objects ask for.
PLAIN: dict[str, Any] = {
    "collections.OrderedDict": PlainDict,
    "collections.Counter": PlainDict,
    "builtins.tuple": Call(tuple),
    "_codecs.encode": Call(_encode),
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": Call(_NumpyType),
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    PLAIN[f"{_core}.multiarray._reconstruct"] = Call(lambda *_: PickledArray())
    PLAIN[f"{_core}.multiarray.scalar"] = Call(lambda *_: None)  # a counter or an accuracy: not wanted


class _Reader(pickle.Unpickler):
    def __init__(
        self, data: bytes, admitted: dict[str, Any], storage: Callable[[Any], Any] | None, source: str
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._admitted, self._storage, self._source = admitted, storage, source

    def find_class(self, module: str, name: str) -> Any:
        # Python 2's name of `builtins`.
        wanted = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if wanted not in self._admitted:
            raise WeightsError(
                f"{self._source} is refused: it asks for {wanted}, and a file of weights may hold arrays, "
                "numbers and names only. Nothing in it was run. If you trust it, load it where it was made "
                "and save its state dictionary alone."
            )
        return self._admitted[wanted]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to data outside of itself")
        return self._storage(pid)


def read_pickle(
    file: IO[bytes],
    *,
    source: str,
    admitted: dict[str, Any] = PLAIN,
    storage: Callable[[Any], Any] | None = None,
) -> Any:
    """The object in the pickle at the file's position; afterwards the file stands behind it.

    Args:
        file: binary and seekable.
        source: the file's name, for messages.
        admitted: by full name, what stands for the functions and classes that the pickle may ask for.
        storage: makes something of the pickle's references to data outside of it.

    Raises:
        WeightsError: it asks for anything else, or is damaged.
    """
    start = file.tell()
    try:
        _check_opcodes(file)
        end = file.tell()
        file.seek(start)
        return _Reader(file.read(end - start), admitted, storage, source).load()
    except WeightsError:
        raise
    except (MemoryError, RecursionError, OverflowError) as error:
        raise WeightsError(f"{source} is refused: its pickle asks for absurd sizes ({error!r}).") from error
    # Whatever a malformed pickle makes the stand-ins or the unpickler raise: none is of our making.
    except Exception as error:
        raise WeightsError(f"{source} is damaged or no pickle of arrays: {str(error)[:200]}.") from error


def _check_opcodes(file: IO[bytes]) -> None:
    """Reads the program without running it: it is whole, and names no absurd place in the memo.

    The unpickler makes room for the highest memo index that is named: four bytes could ask for 64 GB.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError("its memo has an absurd index")
