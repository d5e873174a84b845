"""Pictures of crops and of images."""

from __future__ import annotations

from typing import Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, ImageOps

from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.sources import ImageSource, read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.pretraining import CropGroup, Recipe


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The end of a text that fits into `width` pixels, in characters that can be drawn; "..." where nothing fits."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


_BACKGROUND: Final = (250, 250, 248)
_INK: Final = (40, 40, 44)
_FAINT: Final = (130, 130, 134)
_RULE: Final = (222, 222, 218)
_SMALL_GAP: Final = 4  # between the crops of a group
_GAP: Final = 20  # around the sheet, and between groups
_LINE: Final = 20  # height of a line of text
_MOST_UNREADABLE: Final = 100  # a source of a million broken images is not read to its end for a picture


def contact_sheet(
    source: ImageSource,
    recipe: Recipe,
    *,
    rows: int,
    epoch: int = 0,
    seed: int | None = None,
    height: int = 192,
) -> PillowImage.Image:
    """One row an image: the whole image, then its crops, the groups' sizes in proportion.

    The images are the first `rows` readable ones in the epoch's order, and their crops
    those that a run of this recipe and seed takes in that epoch. After 100 unreadable ones
    it stops looking.

    Args:
        source: images to show.
        recipe: gives crops, augmentation and, unless `seed` is given, the seed.
        rows: number of images, at least 1; fewer are shown if the source has fewer.
        epoch: epoch whose crops are shown, from 0.
        seed: seed of order and crops.
        height: height of a row, pixels: that of the largest crop.

    Raises:
        ValueError: if `rows` is not positive.
        DataError: no image can be read, of the first 100 at the most.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    seed = recipe.train.seed if seed is None else seed
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    shown: list[tuple[str, Image, list[Image]]] = []
    reasons: list[str] = []
    for index in epoch_order(len(source), seed=seed, epoch=epoch).tolist():
        try:
            image = read_image(source, index)
        except (UndecodableImage, OSError) as error:
            reasons.append(f"{printable(source.image_name(index))}: {error}")
            if len(reasons) == _MOST_UNREADABLE:
                break
            continue
        shown.append((source.image_name(index), image, multicrop(image, seed=seed, epoch=epoch, index=index)))
        if len(shown) == rows:
            break
    if not shown:
        raise DataError(
            f"An image must be readable to be shown. Received: {len(reasons)} of {len(source):,} images tried, none "
            f"of which can be read. The first was {reasons[0]}."
        )
    return _draw(shown, recipe, height, f"{recipe.name}   seed {seed}   epoch {epoch}")


def _draw(
    shown: list[tuple[str, Image, list[Image]]], recipe: Recipe, row_height: int, title: str
) -> PillowImage.Image:
    largest = max(group.size for group in recipe.crops)
    sides = [max(8, round(row_height * group.size / largest)) for group in recipe.crops]
    columns = [_columns(group, side, row_height) for group, side in zip(recipe.crops, sides, strict=True)]
    widths = [n * side + (n - 1) * _SMALL_GAP for n, side in zip(columns, sides, strict=True)]
    original_width = row_height * 4 // 3
    starts = [_GAP + original_width + _GAP]
    for width in widths[:-1]:
        starts.append(starts[-1] + width + _GAP)
    heights = [
        -(-group.count // n) * (side + _SMALL_GAP) - _SMALL_GAP
        for group, side, n in zip(recipe.crops, sides, columns, strict=True)
    ]
    row_height = max(row_height, *heights)

    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    row_step = row_height + _LINE + _GAP
    top = _GAP + 4 * _LINE
    sheet = PillowImage.new("RGB", (starts[-1] + widths[-1] + _GAP, top + len(shown) * row_step), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP // 2 + 2), title, _INK, font)
    pen.text((_GAP, _GAP + _LINE + 6), "image", _INK, small)
    for group, start in zip(recipe.crops, starts, strict=True):
        low, high = (round(100 * share, 1) for share in group.scale)
        pen.text((start, _GAP + _LINE + 6), f"{group.count} x {group.size} px", _INK, small)
        pen.text((start, _GAP + 2 * _LINE + 2), f"{low:g} to {high:g} % of the area", _FAINT, small)
    for name, image, crops in shown:
        pen.line((_GAP, top - _GAP // 2, sheet.width - _GAP, top - _GAP // 2), _RULE)
        whole = ImageOps.contain(PillowImage.fromarray(image), (original_width, row_height))
        sheet.paste(whole, (_GAP, top))
        pen.text((_GAP, top + row_height + 4), shortened(name, small, starts[0] - 2 * _GAP), _FAINT, small)
        for views, side, start, n in zip(crops, sides, starts, columns, strict=True):
            for i, view in enumerate(views):
                x, y = start + i % n * (side + _SMALL_GAP), top + i // n * (side + _SMALL_GAP)
                sheet.paste(_scaled(view, side), (x, y))
        top += row_step
    return sheet


def _columns(group: CropGroup, side: int, row_height: int) -> int:
    """Crops beside each other, the others stacked below them as far as the row is high."""
    return -(-group.count // (row_height // side))


def _scaled(view: Image, side: int) -> PillowImage.Image:
    """A crop at the sheet's scale; an enlarged one shows its pixels."""
    enlarge = PillowImage.Resampling.NEAREST if view.shape[0] < side else PillowImage.Resampling.LANCZOS
    return PillowImage.fromarray(view).resize((side, side), enlarge)


_SHEET_BACKGROUND: Final = (250, 250, 248)
_SHEET_INK: Final = (40, 40, 44)
_SHEET_FAINT: Final = (130, 130, 134)
_SHEET_GAP: Final = 12
_TEXT: Final = 34  # height of two lines


def image_sheet(
    source: ImageSource, *, count: int = 48, columns: int = 8, side: int = 128, seed: int = 0
) -> PillowImage.Image:
    """Readable images of a source, drawn at random, each whole in a square of `side` pixels.

    Args:
        source: images.
        count: how many are shown, at least 1; all, if the source has fewer.
        columns: images beside each other.
        side: pixels.
        seed: of the choice.

    Raises:
        ValueError: if no image can be read, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    shown: list[tuple[int, Image]] = []
    for index in epoch_order(len(source), seed=seed, epoch=0).tolist():
        try:
            shown.append((index, read_image(source, index)))
        except (UndecodableImage, OSError):
            continue
        if len(shown) == count:
            break
    if not shown:
        raise ValueError("none of the images can be read")
    rows, columns = -(-len(shown) // columns), min(columns, len(shown))
    font, small = ImageFont.load_default(12), ImageFont.load_default(11)
    size = (_SHEET_GAP + columns * (side + _SHEET_GAP), _SHEET_GAP + rows * (side + _TEXT + _SHEET_GAP))
    sheet = PillowImage.new("RGB", size, _SHEET_BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for place, (index, image) in enumerate(shown):
        left = _SHEET_GAP + place % columns * (side + _SHEET_GAP)
        top = _SHEET_GAP + place // columns * (side + _TEXT + _SHEET_GAP)
        height, width = image.shape[:2]
        picture = ImageOps.contain(PillowImage.fromarray(image), (side, side))
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
        name = printable(source.image_name(index)).rpartition("/")[2]
        said = f"{_class_name(source, index)}  {width} x {height}".strip()
        pen.text((left, top + side + 2), shortened(said, font, side), _SHEET_INK, font)
        pen.text((left, top + side + 17), shortened(name, small, side), _SHEET_FAINT, small)
    return sheet


def _class_name(source: ImageSource, index: int) -> str:
    label = source.label(index)
    return (
        printable(source.class_names[label])
        if 0 <= label < len(source.class_names)
        else str(label) * (label >= 0)
    )
