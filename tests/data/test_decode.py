"""Every kind of file that image folders hold, against Pillow or against the pixels that were written."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from swav_tf.data import decode as module
from swav_tf.data.decode import UndecodableImage, decode


@pytest.fixture
def pixels(small_photo):
    return small_photo


def as_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("JPEG", {"quality": 90, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 80}),
        ("BMP", {}),
    ],
)
def test_colour_files(pixels, encoded, format, options):
    # Channels in the order blue, green, red.
    data = encoded(pixels, format, **options)
    image = decode(data)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - as_pillow(data)).max() <= 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_gray_files_get_three_channels(pixels, encoded, format):
    image = decode(
        encoded(
            Image.fromarray(pixels).convert("L"), format, **({"lossless": True} if format == "WEBP" else {})
        )
    )
    assert image.shape == pixels.shape
    assert np.ptp(image.astype(int), axis=2).max() <= 1


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_jpeg(encoded, marked):
    # Adobe's inverted CMYK taken as it stands gives a negative; black ink left out gives a bright picture.
    inks = np.zeros((64, 64, 4), np.uint8)
    inks[...] = (40, 120, 200, 0)
    inks[..., 3] = np.linspace(0, 255, 64)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    if not marked:
        at = data.index(b"Adobe") - 4
        data = data[:at] + data[at + 16 :]
    assert np.abs(decode(data).astype(int) - as_pillow(data)).max() <= 3


def test_palette_png(pixels, encoded):
    data = encoded(Image.fromarray(pixels).quantize(64), "PNG")
    np.testing.assert_array_equal(decode(data), as_pillow(data))


def test_alpha_is_dropped(pixels, encoded):
    # Premultiplied or composited colours: the reference keeps those below the alpha.
    alpha = np.full((*pixels.shape[:2], 1), 40, np.uint8)
    image = Image.fromarray(np.concatenate([pixels, alpha], 2))
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), pixels)


def test_16_bit_gray_png_is_scaled():
    # Clipped at 255, everything but the darkest 0.4 % is white.
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue())[..., 0], np.rint(levels / 257).astype(np.uint8))


def test_16_bit_colour_png_is_scaled():
    cv2 = pytest.importorskip("cv2")
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    data = cv2.imencode(".png", levels[..., ::-1])[1].tobytes()
    assert np.abs(decode(data).astype(int) - levels / 257).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encoded, format, orientation):
    # Photos of telephones lying on their side, or turned the wrong way.
    image = np.zeros((40, 64, 3), np.uint8)
    image[:20, :32], image[:20, 32:], image[20:, :32] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    upright = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.transpose(1, 0, 2), 6: np.rot90(image, -1), 7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True}
        if format == "WEBP"
        else {"quality": 95, "subsampling": 0}
        if format == "JPEG"
        else {}
    )
    decoded = decode(encoded(image, format, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 20, 0.1, 0.5, 0.9, -40])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_files_are_refused(pixels, encoded, format, keep):
    # OpenCV paints the missing part gray, and Pillow may be told to.
    data = encoded(pixels, format)
    length = int(keep * len(data)) if isinstance(keep, float) else keep
    with pytest.raises(UndecodableImage):
        decode(data[:length])


def test_truncated_progressive_jpeg_is_refused(pixels, encoded):
    # Its first scans make a whole, blurred picture.
    data = encoded(pixels, "JPEG", progressive=True)
    with pytest.raises(UndecodableImage, match="truncated"):
        decode(data[: len(data) * 3 // 4])


def test_jpeg_whose_thumbnail_alone_is_complete_is_refused(pixels, encoded):
    # The end marker of the thumbnail in the header taken for the picture's.
    exif = b"Exif\0\0" + encoded(pixels[:16, :16], "JPEG")
    data = encoded(pixels, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    data = data[:2] + segment + data[2:]
    assert decode(data).shape == pixels.shape
    with pytest.raises(UndecodableImage, match="truncated"):
        decode(data[: len(data) * 3 // 4])


def test_jpeg_that_a_full_disk_ended_in_zeros_is_refused(pixels, encoded):
    # Zeros decode as picture data.
    data = encoded(pixels, "JPEG")
    half = len(data) // 2
    with pytest.raises(UndecodableImage):
        decode(data[:half] + bytes(half))


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(pixels, encoded):
    # Cameras and download tools append them; ImageNet has such files.
    data = encoded(pixels, "JPEG")
    np.testing.assert_array_equal(decode(data + b"\0\n made by a camera"), decode(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + b"\0" * 50 + b"\xff\xd9",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(UndecodableImage):
        decode(data)


def test_corrupt_png_is_refused(pixels, encoded):
    data = bytearray(encoded(pixels, "PNG"))
    for i in range(200, 260):
        data[i] ^= 0xFF
    with pytest.raises(UndecodableImage):
        decode(bytes(data))


# Bug caught: Pillow never looks at the checksums of a PNG's pixels, and shows what zeros in them make.
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_png_with_a_block_of_zeros_is_refused(pixels, encoded, share):
    data = bytearray(encoded(pixels, "PNG"))
    start = int(share * len(data))
    data[start : start + 40] = bytes(40)
    with pytest.raises(UndecodableImage, match="checksum"):
        decode(bytes(data))


def test_bytes_behind_the_end_of_a_png_do_no_harm(pixels, encoded):
    np.testing.assert_array_equal(decode(encoded(pixels, "PNG") + b"more"), pixels)


def test_bombs_are_refused_before_memory_is_taken(encoded, monkeypatch):
    # A small file of 60,000 x 60,000 pixels would take 10 GB.
    data = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(UndecodableImage, match="pixels"):
        decode(data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = encoded(np.zeros((8, 8, 3), np.uint8), "PNG")
    chunk = b"IHDR" + header
    with pytest.raises(UndecodableImage, match="pixels"):
        decode(png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:])

    monkeypatch.setattr(module, "MAX_PIXELS", 63)
    with pytest.raises(UndecodableImage, match="pixels"):
        decode(data)
