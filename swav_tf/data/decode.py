"""Encoded image files to pixels, and the view of an image for evaluation.

OpenCV decodes JPEG, Pillow everything else. Alpha is dropped and the colors below it are kept, as with Pillow's
`convert("RGB")`. EXIF rotation is applied.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from swav_tf.data.augment import Image, resize_box
from swav_tf.recipe.pretraining import EvaluationView

MAX_PIXELS: Final = 89_478_485  # Pillow's limit, 256 MiB of RGB, against decompression bombs
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP")
_START_OF_SCAN: Final = b"\xff\xda"
_END_OF_IMAGE: Final = b"\xff\xd9"
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class UndecodableImage(Exception):
    """Report an image file that is corrupt, truncated, of an unknown format, or too large."""


def decode(data: bytes) -> Image:
    """Return the pixels of a JPEG, PNG, WebP or BMP file, uint8 RGB (height, width, 3).

    The content decides the format, not the name. Only PNG has checksums: damage inside the other formats goes
    unnoticed if the file is complete.

    Raises:
        UndecodableImage: the file is corrupt, truncated, of another format, or has more than MAX_PIXELS pixels.
    """
    if data.startswith(b"\xff\xd8"):
        if not _jpeg_is_complete(data):
            raise UndecodableImage("truncated JPEG: the end-of-image marker is missing")
        _refuse_bomb(*_jpeg_size(data))
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise UndecodableImage("corrupt JPEG")
        return pixels
    return _decode_with_pillow(data)


def _jpeg_is_complete(data: bytes) -> bool:
    """Return whether a JPEG has its end marker; OpenCV silently paints missing parts gray.

    A thumbnail in the header has its own end marker, but before the picture's scans, in which both byte pairs
    can only be markers.
    """
    return data.endswith(_END_OF_IMAGE) or data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return height and width from a JPEG's frame header (ITU-T T.81, B.2.2)."""
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise UndecodableImage("corrupt JPEG: no frame header")


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UndecodableImage(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _png_is_intact(data: bytes) -> bool:
    """Return whether the checksums of all critical chunks are right; Pillow does not check those of the pixels."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        is_critical = not name[0] & 0x20  # a capital letter (PNG specification, 5.4)
        if is_critical and zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if name == b"IEND":
            return True
        position = end + 4
    return False


def _decode_with_pillow(data: bytes) -> Image:
    if data.startswith(_PNG_SIGNATURE) and not _png_is_intact(data):
        raise UndecodableImage("corrupt or truncated PNG: a checksum is wrong or the end is missing")
    try:
        with PillowImage.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_bomb(image.height, image.width)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
                gray = np.asarray(upright).astype(np.float32) * (255 / 65535)
                return np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(f"not one of the formats {', '.join(_FORMATS)}") from None
    except Exception as error:  # Pillow's parsers raise many kinds
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def evaluation_view(image: Image, view: EvaluationView) -> Image:
    """Return the center of an image for k-NN, probes and features, uint8 (view.crop, view.crop, 3).

    The short side is first resized to `view.resize`.

    Raises:
        ValueError: the crop is larger than the resized short side.
    """
    if view.crop > view.resize:
        raise ValueError(f"the crop ({view.crop} px) must fit the resized short side ({view.resize} px)")
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = height * view.resize // short, width * view.resize // short
    resized = resize_box(image, (0, 0, height, width), new_height, new_width)
    top, left = round((new_height - view.crop) / 2), round((new_width - view.crop) / 2)
    return np.ascontiguousarray(resized[top : top + view.crop, left : left + view.crop])
