"""Damaged images: each is decoded or refused with a reason, and a folder of them gives the views of the intact ones."""

import io
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swav_tf.data.decode import MAX_PIXELS, UndecodableImage, decode
from swav_tf.data.folders import ImageFolder
from swav_tf.data.views import UnreadableImages, view_batches
from swav_tf.recipe.pretraining import EvaluationView
from tests.faults.conftest import Tally
from tests.faults.harness import DAMAGES, Worker, damage, damages, examples, randoms, rounds

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


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
def test_damaged_image(worker: Worker, tally: Tally, kind: str, how: str, random: Random) -> None:
    tally("image, decoded alone", worker(decoded, kind, how, damage(originals()[kind], how, random)))


def decoded(kind: str, how: str, data: bytes) -> str:
    try:
        pixels = decode(data)
    except UndecodableImage:
        return "refused"
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    if np.array_equal(pixels, decode(originals()[kind])):
        return "the same pixels"
    assert not how.startswith("cut off"), "a truncated file decodes to other pixels"
    assert not kind.startswith("png"), "other pixels, though a PNG has checksums"
    return "other pixels: the format has no checksum"


# Bugs caught: rows lost or exchanged behind an unreadable image.
def test_folder_of_damaged_images(worker: Worker, tally: Tally, tmp_path: Path, random: Random) -> None:
    for number in rounds(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        for image in range(50):
            original = originals()[random.choice(sorted(originals()))]
            (folder / f"{image:03d}-a.jpg").write_bytes(damage(original, random.choice(DAMAGES), random))
            (folder / f"{image:03d}-b.png").write_bytes(originals()["png"])
        tally("image, in a folder", "left out and listed", worker(read_folder, folder))


def read_folder(folder: Path) -> int:
    """Return how many images are unreadable, once the others were seen to be in order."""
    source, unreadable = ImageFolder(folder), UnreadableImages(100, 1.0, folder / "none.csv")
    view = EvaluationView(resize=32, crop=32)
    batches = view_batches(source, range(100), view, 16, threads=2, unreadable=unreadable.add)
    seen = [image for batch in batches for image in batch]
    bad = []
    for index in range(0, 100, 2):
        try:
            decode(source.read(index))
        except UndecodableImage:
            bad.append(index)
    assert [image.index for image in seen] == [index for index in range(100) if index not in bad]
    assert sorted(unreadable.reasons) == [f"{index // 2:03d}-a.jpg" for index in bad]
    assert len({image.view.tobytes() for image in seen if image.name.endswith("-b.png")}) == 1
    return len(bad)
