"""A picture to check a data set by eye: some of its images in rows, their names and classes below."""

from __future__ import annotations

from typing import Final

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, ImageOps

from swav_tf.data.augment import Image
from swav_tf.data.caption import shortened
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.image_source import ImageSource, read_image
from swav_tf.data.names import printable
from swav_tf.data.order import epoch_order

_BACKGROUND: Final = (250, 250, 248)
_INK: Final = (40, 40, 44)
_FAINT: Final = (130, 130, 134)
_GAP: Final = 12
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
    size = (_GAP + columns * (side + _GAP), _GAP + rows * (side + _TEXT + _GAP))
    sheet = PillowImage.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for place, (index, image) in enumerate(shown):
        left = _GAP + place % columns * (side + _GAP)
        top = _GAP + place // columns * (side + _TEXT + _GAP)
        height, width = image.shape[:2]
        picture = ImageOps.contain(PillowImage.fromarray(image), (side, side))
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
        name = printable(source.image_name(index)).rpartition("/")[2]
        said = f"{_class_name(source, index)}  {width} x {height}".strip()
        pen.text((left, top + side + 2), shortened(said, font, side), _INK, font)
        pen.text((left, top + side + 17), shortened(name, small, side), _FAINT, small)
    return sheet


def _class_name(source: ImageSource, index: int) -> str:
    label = source.label(index)
    return (
        printable(source.class_names[label])
        if 0 <= label < len(source.class_names)
        else str(label) * (label >= 0)
    )
