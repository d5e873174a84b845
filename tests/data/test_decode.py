"""Image files of every kind, compared with Pillow or with the pixels that were written; and the evaluation view."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from swav_tf.data import decode as module
from swav_tf.data.decode import (
    Decoding,
    UndecodableImage,
    decode,
    evaluation_view,
    looks_like_an_image,
    read_pixels,
)
from swav_tf.recipe.data import EvaluationView


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
    alpha = np.full((*pixels.shape[:2], 1), 51, np.uint8)
    alpha[:5] = 0
    image = Image.fromarray(np.concatenate([pixels, alpha], 2))
    for background in ((255, 255, 255), (10, 200, 0)):
        expected = pixels * (alpha / 255.0) + np.array(background) * (1 - alpha / 255.0)
        for data in (
            encoded(image, "PNG"),
            encoded(image, "WEBP", lossless=True, exact=True),
            encoded(image, "TIFF"),
        ):
            assert np.abs(decode(data, Decoding(background)) - expected).max() <= 1


def test_a_transparent_color_of_a_palette(encoded, recwarn):
    # The hidden color below transparent parts; Pillow's warning about palettes.
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), "P")
    image.putpalette([200, 0, 0] * 6 + [0, 0, 90] * 6)
    for transparency in (3, bytes([255] * 3 + [0] + [255] * 8)):
        decoded = decode(encoded(image, "PNG", transparency=transparency))
        assert decoded[0].tolist() == [[200, 0, 0]] * 3 + [[255, 255, 255]]
        assert decoded[2].tolist() == [[0, 0, 90]] * 4
    assert not recwarn.list


# Bugs caught: a format that is refused, the last frame for the first, gray or deep files that are clipped.
def test_other_formats(pixels, encoded, tmp_path):
    first, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    for format, options, most in (
        ("TIFF", {}, 0), ("PPM", {}, 0), ("JPEG2000", {"irreversible": False}, 0), ("AVIF", {"quality": 95}, 60),
        ("TIFF", {"save_all": True, "append_images": [other]}, 0),
        ("WEBP", {"save_all": True, "append_images": [other], "lossless": True}, 0),
    ):  # fmt: skip
        data = encoded(first, format, **options)
        assert looks_like_an_image(data[:16]) or format == "PPM"
        assert np.abs(decode(data).astype(int) - pixels).max() <= most, format
    gif = encoded(first.quantize(64), "GIF", save_all=True, append_images=[other.quantize(64)])
    np.testing.assert_array_equal(decode(gif), as_pillow(gif))
    gray = np.random.default_rng(0).integers(0, 65536, (9, 8)).astype(np.uint16)
    assert np.abs(decode(encoded(Image.fromarray(gray), "TIFF")) - gray[..., None] / 257).max() <= 0.5
    level = gray.astype(np.float32) / 65535
    for values in (level, 7 + 100 * (level - level.min()) / np.ptp(level)):
        low, high = (0, 1) if values.max() <= 1 else (values.min(), values.max())
        expected = 255 * (values[..., None] - low) / (high - low)
        assert np.abs(decode(encoded(Image.fromarray(values), "TIFF")) - expected).max() <= 0.51


@pytest.mark.parametrize("head", [b"<!DOCTYPE html><", b"\0" * 16, b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1", b""])
def test_other_files_do_not_look_like_images(head):
    assert not looks_like_an_image(head)


# Bug caught: 16-bit values that are stretched, as those of float files, if Pillow has opened the file.
def test_a_16_bit_file_as_a_pillow_image(tmp_path):
    levels = np.linspace(20000, 40000, 64, dtype=">u2").reshape(8, 8)
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 8 8 65535\n" + levels.tobytes())
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_pixels(image), read_pixels(path))
    assert read_pixels(path).max() < 160


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
    # Cameras, phones (the video of a motion photo, a second JPEG) and download tools append them.
    draw = np.random.default_rng(5)
    video = b"\0\0\0\x18ftypmp42" + draw.bytes(400_000) + b"\xff\xda" + draw.bytes(9)
    for format, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})):
        data = encoded(pixels, format, **options)
        for after in (b"\0\n made by a camera", video, encoded(pixels[:20], "JPEG")[:-30], b"\xff\xda\0"):
            np.testing.assert_array_equal(decode(data + after), decode(data))
        for after in (bytes(5000), video, video + b"\xff\xd9", data):  # cut off
            with pytest.raises(UndecodableImage):
                decode(data[: len(data) // 2] + after)


def test_two_complete_jpegs_in_one_file(pixels, encoded):
    # The second picture of a camera with two lenses, or the file refused.
    options = {"save_all": True, "append_images": [Image.fromarray(255 - pixels)], "quality": 95}
    data = encoded(pixels, "MPO", **options)
    assert data.count(b"\xff\xd8\xff") == 2
    for complete in (data, data[:-900]):  # the second one may be cut off
        np.testing.assert_array_equal(decode(complete), decode(encoded(pixels, quality=95)))


def test_large_jpegs_are_decoded_smaller(pixels, encoded, monkeypatch):
    # A photo of 108 megapixels refused, or 324 MB of memory for each thread.
    data = encoded(pixels, "JPEG", quality=95)
    monkeypatch.setattr(module, "LARGE", pixels.shape[0] * pixels.shape[1] // 5)
    height, width = pixels.shape[:2]
    reduced = decode(data)
    assert reduced.shape == (-(-height // 4), -(-width // 4), 3)
    expected = cv2.resize(pixels, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - expected).mean() < 4


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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<title>404</title>", "web page"),
        (b"text", "not one of the formats JPEG"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0\0\0", "damaged, or of a variant"),
    ],
)
def test_what_downloads_leave_behind_is_named(data, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "F"])
def test_memory_for_large_images(encoded, mode, monkeypatch):
    # Copies of the whole image in float64: ten times the memory of the result. Pillow's own memory is not counted.
    image = Image.fromarray(np.zeros((2000, 3000), np.uint16 if mode == "I;16" else np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image if mode in ("I;16", "F") else image.convert("L").convert(mode), "TIFF", exif=exif)
    decode(encoded(np.zeros((8, 8, 3), np.uint8), "TIFF"))  # imports
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # `data.max_pixels` is the limit, and this one stays
    tracemalloc.start()
    try:
        decoded = decode(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded.shape == (3000, 2000, 3)
    assert most < decoded.nbytes + 2**24
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_photos_of_phones_in_heic(photo):
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(photo)).save(file, quality=95)
    assert np.abs(decode(file.getvalue()).astype(int) - photo).mean() < 4


def test_bombs_are_refused_before_memory_is_taken(encoded):
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
    with pytest.raises(
        UndecodableImage, match=r"8 x 8 pixels, more than data.max_pixels, 63. .*max_pixels=64"
    ):
        decode(data, Decoding(max_pixels=63))


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


# Bug caught: a line of 60,000 pixels enlarged to 12 GB.
def test_slim_images_are_enlarged_in_their_middle_only(photo):
    line = np.tile(photo[:1], (1, 94, 1))[:, :60_000]
    tracemalloc.start()
    try:
        views = [evaluation_view(image, EvaluationView()) for image in (line, line.transpose(1, 0, 2))]
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    expected = evaluation_view(line[:, 29_990:30_010], EvaluationView())
    assert np.abs(views[0].astype(int) - expected).mean() < 2
    assert np.abs(views[1].astype(int) - views[0].transpose(1, 0, 2)).max() <= 1
