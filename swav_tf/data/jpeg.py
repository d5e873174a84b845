"""The structure of a JPEG file (ITU-T T.81, annex B): its size, and whether it is complete.

OpenCV paints missing parts gray without an error. Searching the bytes for the end-of-image marker does not help: the
thumbnail in a header has one, and so may a video or a second JPEG that cameras append.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import numpy as np

_END_OF_IMAGE: Final = 0xD9
_NEXT_IMAGE: Final = b"\xff\xd8\xff"  # its first bytes, which no scan contains
_START_OF_SCAN: Final = 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# In the data of a scan 0xFF is followed by 0 or by a restart marker; else a segment begins. 0xFF may also fill.
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
# Bytes after 0xFF in scans and in the tables between them: 0, restart, Huffman and quantization tables, scan, and fill.
_OF_SCANS: Final = np.isin(np.arange(256), [0, *range(0xD0, 0xD8), 0xC4, 0xDB, 0xDD, _START_OF_SCAN, 0xFF])


class DamagedJpeg(Exception):
    """Report a JPEG that is corrupt or truncated."""


def read_structure(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG, after a walk over its segments to the end-of-image marker.

    It must be the first picture's. What follows that marker does not matter. Bytes between segments are skipped, as
    decoders do.

    Raises:
        DamagedJpeg: the frame header or the end-of-image marker is missing.
    """
    size, scanned, position, end = None, False, 2, len(data)
    while (found := _MARKER.search(data, position, end)) is not None:
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker < 0xC0:
            if marker == 0x01:  # without a segment, for private use
                continue
            break  # reserved: a scan was cut off, and other data follow
        if marker in _FRAMES and size is None and position + 7 <= len(data):
            size = struct.unpack_from(">HH", data, position + 3)
        position += int.from_bytes(data[position : position + 2], "big")
        if marker == _START_OF_SCAN and not scanned:
            scanned = True
            if size is not None and _only_scans_follow(data, position):
                return size
            if (following := data.find(_NEXT_IMAGE, position)) >= 0:
                end = following
            # Damage inside a photo that ends correctly is for the decoder. Bytes of an appended video prove nothing.
            if size is not None and data.endswith(b"\xff\xd9", 0, end) and data.find(b"ftyp", 0, end) < 0:
                return size
    if size is None:
        raise DamagedJpeg("corrupt JPEG: no frame header")
    if found is None or not scanned or found[1][0] != _END_OF_IMAGE:
        raise DamagedJpeg("truncated JPEG: the end-of-image marker is missing")
    return size


def _only_scans_follow(data: bytes, position: int) -> bool:
    """Return whether scans follow up to an end-of-image marker at the end of the file, as in most photos.

    This takes a sixth of the time of searching for further images.
    """
    rest = np.frombuffer(data, np.uint8, offset=min(position, len(data)))
    after = rest[1:][rest[:-1] == 0xFF]
    return data.endswith(b"\xff\xd9", position) and bool(_OF_SCANS[after[:-1]].all())
