"""Damaged images: each is decoded or refused."""

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swav_tf.data.decode import DEFAULT, UndecodableImage, decode
from tests.faults.harness import damage, damages, examples, randoms

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(1800)]


@cache
def originals() -> dict[str, bytes]:
    """Return intact images of all formats and modes that are decoded, by name."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:64, 0:80]
    waves = np.stack([128 + 120 * np.sin(rows / a + columns / b) for a, b in ((9, 7), (5, 11), (8, 4))], -1)
    picture = Image.fromarray(np.clip(waves + draw.normal(0, 6, waves.shape), 0, 255).astype(np.uint8))
    gray16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter turn

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return {
        "jpeg": saved(picture, "JPEG", quality=85),
        "jpeg progressive": saved(picture, "JPEG", progressive=True),
        "jpeg gray": saved(picture.convert("L"), "JPEG"),
        "jpeg cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "jpeg rotated": saved(picture, "JPEG", exif=rotated),
        "jpeg restarts": saved(picture, "JPEG", restart_marker_blocks=4),
        "png": saved(picture, "PNG"),
        "png alpha": saved(picture.convert("RGBA"), "PNG"),
        "png gray 16": saved(gray16, "PNG"),
        "png palette": saved(picture.quantize(64), "PNG"),
        "webp": saved(picture, "WEBP", quality=80),
        "webp lossless": saved(picture, "WEBP", lossless=True),
        "bmp": saved(picture, "BMP"),
    }


@given(kind=st.sampled_from(sorted(originals())), how=damages, random=randoms)
@examples(1200)
def test_damaged_image(worker, tally, kind, how, random):
    tally("image, decoded alone", worker(decoded, kind, how, damage(originals()[kind], how, random)))


def decoded(kind: str, how: str, data: bytes) -> str:
    try:
        pixels = decode(data)
    except UndecodableImage:
        return "refused"
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= DEFAULT.max_pixels
    if np.array_equal(pixels, decode(originals()[kind])):
        return "the same pixels"
    assert not how.startswith("cut off"), "a truncated file decodes to other pixels"
    assert not kind.startswith("png"), "other pixels, though a PNG has checksums"
    return "other pixels: the format has no checksum"
