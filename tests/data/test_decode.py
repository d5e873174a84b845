"""Image files of every kind, compared with Pillow or with the pixels that were written; and the evaluation view."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from swav_tf.data import decode as module
from swav_tf.data.decode import UndecodableImage, decode, evaluation_view
from swav_tf.recipe.pretraining import EvaluationView


@pytest.fixture
def pixels(small_photo):
    return small_photo


def as_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# === Formats ===


@pytest.mark.parametrize("mode", ["RGB", "L"])
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
def test_color_and_gray_files(pixels, encoded, format, options, mode):
    # Channels in the order blue, green, red; one channel.
    data = encoded(Image.fromarray(pixels).convert(mode), format, **options)
    image = decode(data)
    assert (image.shape, image.dtype) == (pixels.shape, np.uint8)
    assert np.abs(image.astype(int) - as_pillow(data)).max() <= 3


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_jpeg(encoded, marked):
    # Adobe's inverted CMYK read as plain CMYK gives a negative; without black ink the picture is too bright.
    inks = np.full((64, 64, 4), (40, 120, 200, 0), np.uint8)
    inks[..., 3] = np.linspace(0, 255, 64)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    if not marked:
        at = data.index(b"Adobe") - 4
        data = data[:at] + data[at + 16 :]
    assert np.abs(decode(data).astype(int) - as_pillow(data)).max() <= 3


def test_palette_and_alpha(pixels, encoded):
    # Colors premultiplied by alpha or composited.
    data = encoded(Image.fromarray(pixels).quantize(64), "PNG")
    np.testing.assert_array_equal(decode(data), as_pillow(data))
    alpha = np.full((*pixels.shape[:2], 1), 40, np.uint8)
    image = Image.fromarray(np.concatenate([pixels, alpha], 2))
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_is_scaled(channels):
    # Clipped at 255, all but the darkest 0.4 % is white.
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    data = cv2.imencode(".png", levels[..., ::-1])[1].tobytes()
    assert np.abs(decode(data).astype(int) - levels / 257).max() <= (1 if channels == 3 else 0.5)


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encoded, format, options, orientation):
    image = np.zeros((40, 64, 3), np.uint8)
    image[:20, :32], image[:20, 32:], image[20:, :32] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    upright = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.transpose(1, 0, 2), 6: np.rot90(image, -1), 7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(image, format, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


def test_bytes_after_the_end_do_no_harm(pixels, encoded):
    # Cameras and download tools append them; ImageNet has such files.
    for format in ("JPEG", "PNG"):
        data = encoded(pixels, format)
        np.testing.assert_array_equal(decode(data + b"\0\n made by a camera"), decode(data))


# === Damage ===


def test_truncated_jpegs_that_look_complete_are_refused(pixels, encoded):
    # The first scans of a progressive file make a blurred picture; the thumbnail in the header has an end marker.
    exif = b"Exif\0\0" + encoded(pixels[:16, :16])
    plain = encoded(pixels)
    with_thumbnail = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    for data in (encoded(pixels, progressive=True), with_thumbnail):
        assert decode(data).shape == pixels.shape
        with pytest.raises(UndecodableImage, match="truncated"):
            decode(data[: len(data) * 3 // 4])


OTHER = [b"", b"not an image at all", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\0" * 50 + b"\xff\xd9", b"GIF89a"]


def cut(keep):
    return lambda data: data[: int(keep * len(data)) if isinstance(keep, float) else keep]


def overwrite(start, stop, flip=None):
    def damage(data):
        low, high = int(start * len(data)), int(stop * len(data))
        block = bytes(high - low) if flip is None else bytes(byte ^ flip for byte in data[low:high])
        return data[:low] + block + data[high:]

    return damage


# Bugs caught: OpenCV paints missing parts gray; zeros decode as picture data; Pillow does not check the checksums of a
# PNG's pixels.
@pytest.mark.parametrize(
    ("formats", "damages"),
    [
        (("JPEG", "PNG", "WEBP", "BMP"), [cut(keep) for keep in (0, 1, 2, 3, 8, 20, 0.1, 0.5, 0.9, -40)]),
        (("JPEG",), [overwrite(0.5, 1)]),
        (("PNG",), [overwrite(0.05, 0.06, 0xFF), *(overwrite(x, x + 0.01) for x in (0.2, 0.5, 0.9))]),
        (("JPEG",), [lambda _, other=other: other for other in OTHER]),
    ],
)
def test_damaged_files_are_refused(pixels, encoded, formats, damages):
    for format in formats:
        for damage in damages:
            with pytest.raises(UndecodableImage):
                decode(damage(encoded(pixels, format)))


def test_bombs_are_refused_before_memory_is_taken(encoded, monkeypatch):
    # A small file of 60,000 x 60,000 pixels would take 10 GB.
    data = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    png = encoded(np.zeros((8, 8, 3), np.uint8), "PNG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    for bomb in (
        data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :],
        png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:],
    ):
        with pytest.raises(UndecodableImage, match="pixels"):
            decode(bomb)
    monkeypatch.setattr(module, "MAX_PIXELS", 63)
    with pytest.raises(UndecodableImage, match="pixels"):
        decode(data)


# === Evaluation view ===


@pytest.mark.parametrize("turned", [False, True])
def test_evaluation_view_is_pillows(photo, turned):
    # The long side resized, the aspect ratio lost, no antialiasing, or a corner for the center.
    image = np.ascontiguousarray(photo.transpose(1, 0, 2)) if turned else photo
    height, width = image.shape[:2]
    size = (256 * width // min(height, width), 256 * height // min(height, width))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), float)
    ours = evaluation_view(image, EvaluationView())
    assert ours.shape == (224, 224, 3)
    assert ours.flags.c_contiguous
    assert np.abs(ours - expected).mean() < 2
    assert np.abs(evaluation_view(image[::-1], EvaluationView()) - expected).mean() > 20


def test_sizes_of_the_evaluation_view(photo):
    image = photo[:32, :32]
    np.testing.assert_array_equal(evaluation_view(image, EvaluationView(resize=32, crop=32)), image)
    with pytest.raises(ValueError, match="must fit"):
        evaluation_view(photo, EvaluationView(resize=200, crop=224))
