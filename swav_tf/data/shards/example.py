"""tf.train.Example, written and read without TensorFlow.

It is a small protobuf message: Example{1: Features}, Features{1: map of name to Feature},
Feature{1: BytesList | 2: FloatList | 3: Int64List}, each list{1: values}. In protobuf's wire
format a field is a varint `number << 3 | kind` and then its value; kinds are 0 varint, 1 eight
bytes, 2 a length and so many bytes, 5 four bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

Values = list[bytes] | list[int]

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_BYTES_LIST, _INT64_LIST = 1, 3
_WORD: Final = 1 << 64


class MalformedExample(ValueError):
    """The bytes are no tf.train.Example."""


def encode_example(features: Mapping[str, bytes | int]) -> bytes:
    """The message with one value a feature, in the order of their names: the same bytes every time."""
    entries = b""
    for name in sorted(features):
        value = features[name]
        if isinstance(value, bytes):
            feature = _field(_BYTES_LIST, _field(1, value))
        else:
            feature = _field(_INT64_LIST, _field(1, _varint(value % _WORD)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def decode_example(data: bytes) -> dict[str, Values]:
    """Every feature's values by name; floats, which no image needs, are left out of a feature's list.

    Raises:
        MalformedExample: if the bytes are no such message.
    """
    features: dict[str, Values] = {}
    for number, start, end in _fields(data, 0, len(data)):
        if number == 1:
            for inner, entry_start, entry_end in _fields(data, start, end):
                if inner == 1:
                    name, values = _entry(data, entry_start, entry_end)
                    features[name] = values
    return features


def _entry(data: bytes, start: int, end: int) -> tuple[str, Values]:
    name, values = "", list[bytes]()
    found: Values = values
    for number, first, last in _fields(data, start, end):
        if number == 1:
            name = data[first:last].decode("utf-8", "replace")
        elif number == 2:
            for kind, list_first, list_last in _fields(data, first, last):
                if kind == _BYTES_LIST:
                    found = [data[a:b] for field, a, b in _fields(data, list_first, list_last) if field == 1]
                elif kind == _INT64_LIST:
                    found = _integers(data, list_first, list_last)
    return name, found


def _integers(data: bytes, start: int, end: int) -> list[int]:
    """The list's values, packed one behind the other, or each a field of its own: both are allowed."""
    found = []
    for number, first, last in _fields(data, start, end):
        while number == 1 and first < last:
            value, first = _read_varint(data, first, last)
            found.append(value - _WORD if value >= _WORD // 2 else value)
    return found


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of the value of each field between two places."""
    while start < end:
        key, start = _read_varint(data, start, end)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, start = _read_varint(data, start, end)
            stop = start + length
        elif kind == _VARINT:
            _, stop = _read_varint(data, start, end)
        elif kind in (_EIGHT, _FOUR):
            stop = start + (8 if kind == _EIGHT else 4)
        else:
            raise MalformedExample(f"a field of kind {kind}")
        if number == 0 or stop > end:
            raise MalformedExample("a field that reaches beyond the message")
        yield number, start, stop
        start = stop


def _read_varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 64:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value % _WORD, start
    raise MalformedExample("a number without an end")


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
