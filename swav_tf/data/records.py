"""The records of TFRecord files, read by position without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.plumbing.errors import DataError

HEADER: Final = 12  # bytes before a record: its length and the length's checksum
FOOTER: Final = 4  # bytes after it: its checksum

Values = list[bytes] | list[int]


def record_table(shard: str) -> npt.NDArray[np.int64]:
    """Return offset and length of each record of a file, (records, 2), from the lengths alone.

    Raises:
        DataError: the file is truncated, compressed or not a TFRecord file.
    """
    size = storage.facts(shard).size
    records: list[tuple[int, int]] = []
    start = 0
    with storage.opened(shard) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        while start < size and not compressed:
            file.seek(start)
            header = file.read(HEADER)
            length = struct.unpack_from("<Q", header)[0] if len(header) == HEADER else size
            end = start + HEADER + length + FOOTER
            if end > size:
                break
            records.append((start + HEADER, length))
            start = end
    if compressed:
        raise DataError(f"TFRecord shards must be uncompressed; {shard} is a gzip file. Unpack it first.")
    if start < size:
        raise DataError(
            f"TFRecord shard {shard} is truncated or not a TFRecord file: record {len(records)}, at byte {start}, "
            f"does not end within the file's {size} bytes. Copy or write it again."
        )
    return np.array(records, np.int64).reshape(-1, 2)


def starts_like_records(head: bytes) -> bool:
    """Return whether the first bytes of a file are the length of a record with its checksum."""
    return len(head) >= HEADER and struct.unpack("<I", head[8:HEADER])[0] == _masked_crc(head[:8])


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(shard: str, offset: int, length: int) -> bytes:
    """Return the data of a record, compared with its checksum.

    Raises:
        OSError: the file ends before, cannot be read, or the data is damaged.
    """
    data = storage.read_range(shard, offset, length + FOOTER)
    record, footer = data[:length], data[length:]
    if len(footer) < FOOTER:
        raise OSError(f"the shard ends within the record: it has {len(data)} of {length + FOOTER} bytes")
    if struct.unpack("<I", footer)[0] != _masked_crc(record):
        raise OSError("the record's checksum is wrong: its bytes are not those that were written")
    return record


# === Protocol buffers: tf.train.Example, and the fields of any message ===


class MalformedExample(ValueError):
    """Report bytes that are not a tf.train.Example."""


def decode_example(data: bytes) -> dict[str, Values]:
    """Return the values of each feature of a tf.train.Example by name; lists of floats come out empty."""
    found: dict[str, Values] = {}
    for features in proto_messages(memoryview(data), 1):
        for entry in proto_messages(features, 1):
            name = b"".join(proto_messages(entry, 1)).decode("utf-8", "replace")
            found[name] = []
            for feature in proto_messages(entry, 2):
                for values in proto_messages(feature, 1):
                    found[name] = [bytes(value) for value in proto_messages(values, 1)]
                for values in proto_messages(feature, 3):
                    numbers = [
                        number for value in proto_fields(values, 1) for number in proto_integers(value)
                    ]
                    found[name] = [number - 2**64 if number >= 2**63 else number for number in numbers]
    return found


def proto_messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of one field of a message, which must be bytes."""
    for value in proto_fields(message, number):
        if isinstance(value, int):
            raise MalformedExample("an integer in place of bytes")
        yield value


def proto_integers(value: memoryview | int) -> Iterator[int]:
    """Yield the unsigned integers of a field: one, or several packed into its bytes."""
    if isinstance(value, int):
        yield value
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield number


def proto_fields(message: memoryview, number: int) -> Iterator[memoryview | int]:
    """Yield the values of one field of a message: integers, or views of bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind, value = key & 7, 0
        if kind == 0:
            value, position = _varint(message, position)
        start = position
        if kind == 2:
            length, start = _varint(message, position)
            position = start + length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind != 0:
            raise MalformedExample(f"a field of type {kind}")
        if position > len(message) or key < 8:
            raise MalformedExample("a field that ends beyond its message")
        if key >> 3 == number:
            yield message[start:position] if kind else value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the integer at a position, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value % 2**64, position + shift + 1
    raise MalformedExample("an integer without an end")
