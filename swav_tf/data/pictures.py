"""Contact sheets: an epoch's crops next to their images."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, ImageOps

from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.image_source import ImageSource
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.sources import read_image
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import counted, printable
from swav_tf.recipe.pretraining import CropGroup, Recipe

_BACKGROUND: Final = (250, 250, 248)
_INK: Final = (40, 40, 44)
_FAINT: Final = (130, 130, 134)
_RULE: Final = (222, 222, 218)
_SMALL_GAP: Final = 4  # between the crops of a group
_GAP: Final = 20  # around the sheet, and between groups
_LINE: Final = 20  # height of a line of text
_MAX_UNREADABLE: Final = 100  # a million broken images are not all tried for one picture


PICTURE_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp")


def check_picture(path: Path) -> None:
    """Check the name of a picture before any work is done."""
    if path.suffix.lower() not in PICTURE_ENDINGS or path.is_dir():
        raise UsageError(f"A picture must end in {', '.join(PICTURE_ENDINGS)}. Received: {path}.")


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the end of a text that fits into `width` pixels, only drawable characters; "..." if nothing fits."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def contact_sheet(
    source: ImageSource, recipe: Recipe, *, rows: int, epoch: int = 0, height: int = 192
) -> PillowImage.Image:
    """Draw one row for each image: the image, then its crops, the groups' sizes in proportion.

    The images are the first readable ones in the order of `epoch`, with the crops that a run takes in that epoch.
    `height` is that of a row and of the largest crop, pixels.

    Raises:
        DataError: no image can be read.
    """
    seed = recipe.train.seed
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    shown = [
        (source.image_name(index), image, multicrop(image, seed=seed, epoch=epoch, index=index))
        for index, image in _readable(source, rows, seed=seed, epoch=epoch)
    ]
    return _draw(shown, recipe, height, f"{recipe.name}   seed {seed}   epoch {epoch}")


def _readable(source: ImageSource, count: int, *, seed: int, epoch: int) -> list[tuple[int, Image]]:
    """Return the first `count` readable images in the epoch's order, or fewer after too many unreadable ones."""
    found: list[tuple[int, Image]] = []
    reasons: list[str] = []
    for index in epoch_order(len(source), seed=seed, epoch=epoch).tolist():
        if len(found) == count or len(reasons) == _MAX_UNREADABLE:
            break
        try:
            found.append((index, read_image(source, index)))
        except (UndecodableImage, OSError) as error:
            reasons.append(f"{printable(source.image_name(index))}: {error}")
    if not found:
        raise DataError(
            f"At least one image must be readable. Received: {len(source):,} images; none of the {len(reasons)} that "
            f"were tried can be read. The first was {reasons[0]}. Run `swav-tf data check` for a list."
        )
    if reasons:
        log.warning(
            f"{counted(len(found), 'image')} drawn, {len(reasons)} cannot be read. The first was {reasons[0]}."
        )
    return found


def _draw(
    shown: list[tuple[str, Image, list[Image]]], recipe: Recipe, row_height: int, title: str
) -> PillowImage.Image:
    largest = max(group.size for group in recipe.crops)
    sides = [max(8, round(row_height * group.size / largest)) for group in recipe.crops]
    # Small crops are stacked as far as the row is high.
    columns = [-(-g.count // (row_height // side)) for g, side in zip(recipe.crops, sides, strict=True)]
    widths = [n * (side + _SMALL_GAP) - _SMALL_GAP for n, side in zip(columns, sides, strict=True)]
    original_width = row_height * 4 // 3
    *starts, right = accumulate((width + _GAP for width in widths), initial=_GAP + original_width + _GAP)
    heights = [
        -(-group.count // n) * (side + _SMALL_GAP) - _SMALL_GAP
        for group, side, n in zip(recipe.crops, sides, columns, strict=True)
    ]
    row_height = max(row_height, *heights)

    small = ImageFont.load_default(12)
    top = _GAP + 4 * _LINE
    row_step = row_height + _LINE + _GAP
    sheet = PillowImage.new("RGB", (right, top + len(shown) * row_step), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _draw_head(pen, recipe.crops, starts, title)
    for name, image, crops in shown:
        pen.line((_GAP, top - _GAP // 2, sheet.width - _GAP, top - _GAP // 2), _RULE)
        sheet.paste(ImageOps.contain(PillowImage.fromarray(image), (original_width, row_height)), (_GAP, top))
        pen.text((_GAP, top + row_height + 4), shortened(name, small, starts[0] - 2 * _GAP), _FAINT, small)
        for views, side, start, n in zip(crops, sides, starts, columns, strict=True):
            for i, view in enumerate(views):
                x, y = start + i % n * (side + _SMALL_GAP), top + i // n * (side + _SMALL_GAP)
                sheet.paste(scaled(view, side), (x, y))
        top += row_step
    return sheet


def _draw_head(pen: ImageDraw.ImageDraw, crops: tuple[CropGroup, ...], starts: list[int], title: str) -> None:
    small = ImageFont.load_default(12)
    pen.text((_GAP, _GAP // 2 + 2), title, _INK, ImageFont.load_default(15))
    pen.text((_GAP, _GAP + _LINE + 6), "image", _INK, small)
    for group, start in zip(crops, starts, strict=True):
        low, high = (round(100 * share, 1) for share in group.scale)
        pen.text((start, _GAP + _LINE + 6), f"{group.count} x {group.size} px", _INK, small)
        pen.text((start, _GAP + 2 * _LINE + 2), f"{low:g} to {high:g} % of the area", _FAINT, small)


def scaled(view: Image, side: int) -> PillowImage.Image:
    """Return a square image at another size; enlarged pixels stay sharp."""
    enlarge = PillowImage.Resampling.NEAREST if view.shape[0] < side else PillowImage.Resampling.LANCZOS
    return PillowImage.fromarray(view).resize((side, side), enlarge)
