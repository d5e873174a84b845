"""TFRecord's framing: where the records of a shard lie, and whether their bytes are those that were written.

A shard is a row of records, each an 8-byte length, its 4-byte checksum, the data and the data's
4-byte checksum. The checksums are CRC-32C, turned and shifted as TensorFlow does.
"""

from __future__ import annotations

import os
import struct
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.errors import DataError

HEADER: Final = 12  # length and its checksum
FOOTER: Final = 4  # the data's checksum
_REMOTE_BLOCK: Final = 16 << 20  # bytes asked of an object store at a time


def framed(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, data and footer of a record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)), data, struct.pack("<I", _masked_crc(data))


def unframed(data: bytes, length: int) -> bytes:
    """The data of a record from its data and footer together, held against the checksum.

    Raises:
        OSError: the shard ends before, or the data is not what was written.
    """
    record, footer = data[:length], data[length : length + FOOTER]
    if len(footer) < FOOTER:
        raise OSError(f"the shard ends within the record: {len(data)} of {length + FOOTER} bytes are there")
    if struct.unpack("<I", footer)[0] != _masked_crc(record):
        raise OSError("the record's checksum is wrong: its bytes are not those that were written")
    return record


def record_table(shard: str) -> npt.NDArray[np.int64]:
    """Offset and length of the data of each record in a shard, (records, 2), by one walk over the lengths.

    Raises:
        DataError: the shard is truncated, compressed or no TFRecord file.
    """
    size = storage.facts(shard).size
    reader = _LocalReader(shard) if not storage.is_remote(shard) else _RemoteReader(shard)
    records: list[tuple[int, int]] = []
    with reader:
        if reader.read(0, 2) == b"\x1f\x8b":
            raise DataError(f"TFRecord shards must be uncompressed; {shard} is a gzip file. Unpack it first.")
        position = 0
        while position < size:
            header = reader.read(position, HEADER)
            length = struct.unpack_from("<Q", header)[0] if len(header) == HEADER else size
            end = position + HEADER + length + FOOTER
            if end > size:
                raise DataError(
                    f"TFRecord shard {shard} is truncated or not a TFRecord file: record {len(records)}, at "
                    f"byte {position}, does not end within the file's {size} bytes. Copy or write it again."
                )
            records.append((position + HEADER, length))
            position = end
    return np.array(records, np.int64).reshape(-1, 2)


class _LocalReader:
    """A file that stays open."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDONLY)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


class _RemoteReader:
    """A remote file, read in large blocks: a request for each of a shard's lengths would take minutes."""

    def __init__(self, path: str) -> None:
        self._path, self._start, self._block = path, 0, b""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, offset: int, length: int) -> bytes:
        within = offset - self._start
        if not 0 <= within <= len(self._block) - length:
            self._start, within = offset, 0
            self._block = storage.read_range(self._path, offset, _REMOTE_BLOCK)
        return self._block[within : within + length]


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
