"""Decode image files, and cut the view for evaluation.

OpenCV decodes JPEG, Pillow everything else. The rules for what RGB of 8 bits cannot express:

EXIF rotation   is applied: images are upright
alpha           the image is composited over `Decoding.background`
16 bits         divided by 257; other integers and floats are stretched from their range to 0..255, floats within
                0..1 from 0..1
several frames  the first frame or page
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from swav_tf.data.augment import Image, resize_box
from swav_tf.data.jpeg import DamagedJpeg, read_structure
from swav_tf.recipe.data import Data, EvaluationView

# Formats by Pillow's names, with the extensions of their files. HEIF needs pillow-heif.
FORMATS: Final = {
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
_READABLE: Final = [name for name in FORMATS if name != "HEIF" or find_spec("pillow_heif") is not None]
EXTENSIONS: Final = tuple(extension for name in _READABLE for extension in FORMATS[name])
# The first bytes of files that are recognized without an extension.
_SIGNATURES: Final = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"GIF8",
    b"\0\0\0\x0cjP  ",
)
_BRANDS: Final = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"heim", b"heis")  # of ISO media files
_HEIF: Final = _BRANDS[2:]
_PILLOWS: Final = [name for name in FORMATS if name != "HEIF"]
# Pixels, 256 MiB of RGB: larger JPEGs are decoded at a half, a quarter or an eighth.
LARGE: Final = 89_478_485
_REDUCED: Final = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PNG_SIGNATURE: Final = _SIGNATURES[1]
SLIM: Final = 50  # long side over short side
_STRIP: Final = 2**18  # pixels that are converted at once

# glibc keeps and reuses the memory of arrays up to the largest that was released so far. Without this, the system may
# have to clear new pages for each image: a sixth of the time of a process that makes crops.
np.empty(31 * 2**20, np.uint8)


class UndecodableImage(Exception):
    """Report an image file that is corrupt, truncated, of an unknown format, or too large."""


class TooManyPixels(UndecodableImage):
    """Report an image with more pixels than `Decoding.max_pixels`."""


@dataclass(frozen=True)
class Decoding:
    """The settings of a recipe that decoding depends on: data.background and data.max_pixels."""

    background: tuple[int, int, int] = Data.model_fields["background"].default
    max_pixels: int = Data.model_fields["max_pixels"].default

    @classmethod
    def of(cls, data: Data) -> Decoding:
        """Return the settings of a recipe."""
        return cls(data.background, data.max_pixels)


DEFAULT: Final = Decoding()


def looks_like_an_image(head: bytes) -> bool:
    """Return whether the first 16 bytes of a file are those of an image, regardless of its name."""
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return webp or head.startswith(_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)


def decode(data: bytes, settings: Decoding = DEFAULT) -> Image:
    """Return the pixels of an image file of one of FORMATS, uint8 RGB (height, width, 3).

    The content decides the format, not the name. JPEGs of more than LARGE pixels are returned at a half, a quarter or
    an eighth of their size. Only PNG has checksums: damage inside the other formats goes unnoticed if the file is
    complete.

    Raises:
        UndecodableImage: the file is corrupt, truncated, of another format, or has too many pixels.
    """
    return (
        _decode_jpeg(data, settings) if data.startswith(b"\xff\xd8") else _decode_with_pillow(data, settings)
    )


ImageLike = str | Path | bytes | PillowImage.Image | Image


def read_pixels(image: ImageLike, settings: Decoding = DEFAULT) -> Image:
    """Return the pixels of an image, uint8 RGB (height, width, 3).

    `image` is the path or the content of a file, an image of Pillow, or an array of these pixels.

    Raises:
        UndecodableImage: the file or the array is not an image, or has too many pixels.
        OSError: the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UndecodableImage(
                f"an array must be uint8 RGB (height, width, 3), not {image.dtype} {image.shape}"
            )
        return image
    if isinstance(image, PillowImage.Image):
        _refuse_bomb(image.height, image.width, settings)
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which decides how 16-bit values are scaled
        return _to_rgb(upright, settings.background)
    return decode(image if isinstance(image, bytes) else Path(image).read_bytes(), settings)


def _decode_jpeg(data: bytes, settings: Decoding) -> Image:
    try:
        height, width = read_structure(data)
    except DamagedJpeg as error:
        raise UndecodableImage(str(error)) from error
    _refuse_bomb(height, width, settings)
    encoded, part = np.frombuffer(data, np.uint8), 1
    while height * width > LARGE * part**2 and part < 8:
        part *= 2
    if part == 1:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    else:
        pixels = cv2.imdecode(encoded, _REDUCED[part])
        pixels = None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    if pixels is None:
        raise UndecodableImage("corrupt JPEG")
    return pixels


def _refuse_bomb(height: int, width: int, settings: Decoding) -> None:
    if height * width > settings.max_pixels:
        raise TooManyPixels(
            f"{width} x {height} pixels, more than data.max_pixels, {settings.max_pixels:,}. If the image is intact, "
            f"set -o data.max_pixels={height * width}"
        )


def _png_is_intact(data: bytes) -> bool:
    """Return whether the checksums of all critical chunks are right; Pillow does not check those of the pixels."""
    position, view = len(_PNG_SIGNATURE), memoryview(data)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        is_critical = not name[0] & 0x20  # a capital letter (PNG specification, 5.4)
        if is_critical and zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if name == b"IEND":
            return True
        position = end + 4
    return False


def _decode_with_pillow(data: bytes, settings: Decoding) -> Image:
    if data.startswith(_PNG_SIGNATURE) and not _png_is_intact(data):
        raise UndecodableImage("corrupt or truncated PNG: a checksum is wrong or the end is missing")
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF
    if heif:
        _register_heif()
    try:
        with _no_limit, PillowImage.open(io.BytesIO(data), formats=["HEIF"] if heif else _PILLOWS) as image:
            _refuse_bomb(image.height, image.width, settings)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, settings.background)
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(_instead_of_an_image(data)) from None
    except Exception as error:  # Pillow's parsers raise many kinds
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


class _NoLimit:
    """Lift Pillow's limit on pixels while threads decode: `Decoding.max_pixels` is the limit here."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._limit = PillowImage.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, PillowImage.MAX_IMAGE_PIXELS = PillowImage.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                PillowImage.MAX_IMAGE_PIXELS = self._limit


_no_limit: Final = _NoLimit()


def _instead_of_an_image(data: bytes) -> str:
    """Describe a file that is not an image, such as those that failed downloads leave behind."""
    head = data[:64].lstrip().lower()
    if not data:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the image: run `git lfs pull`"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page instead of an image: download it again"
    if looks_like_an_image(data):
        return "damaged, or of a variant of its format that Pillow does not read"
    return f"not one of the formats {', '.join(FORMATS)}"


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise UndecodableImage('HEIC files need pillow-heif: pip install "swav-tf[heif]"') from None
    pillow_heif.register_heif_opener()


def _to_rgb(image: PillowImage.Image, background: tuple[int, int, int]) -> Image:
    """Return an image of any of Pillow's modes as uint8 RGB, by the rules at the top of this file.

    It is converted by strips, so that a large image takes little more memory than Pillow's copy and the result.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    low, scale = _range(image)
    is_deep = image.mode.startswith("I;16") or image.mode in ("I", "F")  # gray with more than 8 bits
    for top, strip in _strips(image):
        rows = pixels[top : top + strip.height]
        if is_deep:
            rows[:] = np.rint((_values(strip) - low) * scale).clip(0, 255)[..., None]
            continue
        if strip.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in strip.info:
            below = PillowImage.new("RGBA", strip.size, (*background, 255))
            below.alpha_composite(strip.convert("RGBA"))
            strip = below
        rows[:] = np.asarray(strip.convert("RGB"))
    return pixels


def _strips(image: PillowImage.Image) -> Iterator[tuple[int, PillowImage.Image]]:
    """Yield the first row and the pixels of strips of full width."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _values(strip: PillowImage.Image) -> np.ndarray[Any, Any]:
    """Return gray values, float64 (height, width); NaN and infinities become 0."""
    return np.nan_to_num(np.asarray(strip, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _range(image: PillowImage.Image) -> tuple[float, float]:
    """Return the gray value that becomes 0, and the factor from gray values to 0..255."""
    # Pillow reads 16-bit files of PNG and PPM as 32-bit integers.
    if image.mode not in ("I", "F") or image.format in ("PNG", "PPM"):
        return 0.0, 1 / 257
    ranges = [(values.min(), values.max()) for _, strip in _strips(image) for values in [_values(strip)]]
    low, high = float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return low, 255 / max(high - low, 1e-12)


def evaluation_view(image: Image, view: EvaluationView) -> Image:
    """Return the center of an image for k-NN, probes and features, uint8 (view.crop, view.crop, 3).

    The short side is first resized to `view.resize`; of an image more than SLIM times as long as wide, only the middle
    is: at 1 x 60,000 pixels the result would take 12 GB.

    Raises:
        ValueError: the crop is larger than the resized short side.
    """
    if view.crop > view.resize:
        raise ValueError(f"the crop ({view.crop} px) must fit the resized short side ({view.resize} px)")
    short = min(image.shape[:2])
    too_high, too_wide = (max(0, side - SLIM * short) // 2 for side in image.shape[:2])
    image = image[too_high : image.shape[0] - too_high, too_wide : image.shape[1] - too_wide]
    height, width = image.shape[:2]
    new_height, new_width = height * view.resize // short, width * view.resize // short
    resized = resize_box(image, (0, 0, height, width), new_height, new_width)
    top, left = round((new_height - view.crop) / 2), round((new_width - view.crop) / 2)
    return np.ascontiguousarray(resized[top : top + view.crop, left : left + view.crop])
