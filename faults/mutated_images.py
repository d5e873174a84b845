"""Damaged images: each is decoded or refused in words, and a folder of them gives the features of the whole ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.isolated import isolated
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.data.decode import MAX_PIXELS, UndecodableImage, decode
from swav_tf.data.folders import ImageFolder
from swav_tf.data.views import UnreadableImages, view_batches
from swav_tf.recipe.pretraining import EvaluationView

FOLDER_IMAGES = 50  # of a folder that is read whole
LOSSLESS = ("png", "png gray 16", "png palette", "bmp", "webp lossless")


@cache
def originals() -> dict[str, bytes]:
    """Whole images of all formats and kinds that the decoder takes, by kind."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:64, 0:80]
    waves = np.stack([128 + 120 * np.sin(rows / a + columns / b) for a, b in ((9, 7), (5, 11), (8, 4))], -1)
    pixels = np.clip(waves + draw.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the tag of the orientation: a quarter turn

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    gray16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
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


def damaged(plan: Plan, number: int) -> tuple[str, str, bytes]:
    """Kind of image, name of the damage, and the damaged file of a trial."""
    draw, kinds = plan.draw(number), sorted(originals())
    kind = kinds[int(draw.integers(len(kinds)))]
    data, how = mutated(originals()[kind], draw)
    return kind, how, data


def run(plan: Plan) -> Iterator[Trial]:
    """Each image alone, then folders of them among whole ones."""
    readable: dict[int, bool] = {}

    def outcome(number: int) -> tuple[str, str]:
        kind, how, data = damaged(plan, number)
        try:
            pixels = decode(data)
        except UndecodableImage as error:
            return "refused in words", "" if str(error).strip() else "the error says nothing"
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            return "", f"decodes to {pixels.dtype} {pixels.shape}"
        if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
            return "", f"decodes to {pixels.shape}, more than is accepted"
        same = np.array_equal(pixels, decode(originals()[kind]))
        if same:
            return "same pixels", ""
        if how.startswith("cut"):
            return "", "is cut off, and decodes to other pixels than the whole image"
        if kind.startswith("png"):
            return "", "decodes to other pixels, though a PNG has checksums"
        return "other pixels: the format has no checksum", ""

    for answer in isolated(outcome, list(plan.numbers)):
        kind, how, _ = damaged(plan, answer.argument)
        told, wrong = answer.value or ("", "")
        wrong = answer.broken or wrong
        readable[answer.argument] = told != "refused in words"
        finding = f"{kind}, {how}: {shortened(wrong)}" if wrong else ""
        yield Trial(answer.argument, "image decoded alone", told or "broken", finding=finding)
    numbers = list(plan.numbers)
    for start in range(0, len(numbers), FOLDER_IMAGES):
        yield _folder(plan, numbers[start : start + FOLDER_IMAGES], readable)


def _folder(plan: Plan, numbers: list[int], readable: dict[int, bool]) -> Trial:
    """Damaged images and a whole one behind each: no row is lost, none is another's."""
    folder = plan.folder / f"folder-{numbers[0]}"
    folder.mkdir(parents=True)
    whole = originals()["png"]
    for number in numbers:
        (folder / f"{number:06d}-a.jpg").write_bytes(damaged(plan, number)[2])
        (folder / f"{number:06d}-b.png").write_bytes(whole)
    what = f"folder of {FOLDER_IMAGES} damaged images and as many whole ones"

    def rows(path: Path) -> tuple[list[int], list[str], bool]:
        source, view = ImageFolder(path), EvaluationView(resize=32, crop=32)
        unreadable = UnreadableImages(len(source), 1.0, path / "none.csv")
        batches = view_batches(source, range(len(source)), view, 16, threads=2, unreadable=unreadable.add)
        seen = [image for batch in batches for image in batch]
        whole_views = [image.view for image in seen if image.name.endswith("-b.png")]
        alike = len({one.tobytes() for one in whole_views if one is not None}) == 1
        return [image.index for image in seen], list(unreadable.reasons), alike

    [answer] = isolated(rows, [folder], limit_s=60)
    if answer.broken:
        return Trial(numbers[0], what, "broken", finding=shortened(answer.broken))
    indices, bad, alike = answer.value
    wanted = [index for index in range(2 * len(numbers)) if index % 2 or readable[numbers[index // 2]]]
    wanted_bad = [f"{number:06d}-a.jpg" for number in numbers if not readable[number]]
    if indices != wanted or sorted(bad) != wanted_bad or not alike:
        return Trial(numbers[0], what, "broken", finding=f"rows {indices}, left out {bad}, alike {alike}")
    return Trial(numbers[0], what, "the whole ones, in order", faults=len(wanted_bad))
