"""Small pictures of images, and the colours of what stands beside them."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image as PillowImage

from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.image_source import ImageSource, read_image
from swav_tf.data.view import evaluation_view
from swav_tf.errors import DataError
from swav_tf.recipe import EvaluationView

BACKGROUND: Final = (250, 250, 248)
INK: Final = (40, 40, 44)
FAINT: Final = (125, 125, 130)
RULE: Final = (222, 222, 218)


def thumbnail(source: ImageSource, index: int, view: EvaluationView, side: int) -> PillowImage.Image:
    """What the model saw of an image, as a square of `side` pixels; an enlarged one shows its pixels.

    Raises:
        DataError: the image cannot be read (any more).
    """
    try:
        return scaled(evaluation_view(read_image(source, index), view), side)
    except (UndecodableImage, OSError) as error:
        raise DataError(f"{source.image_name(index)} cannot be read: {error}") from error


def scaled(image: Image, side: int) -> PillowImage.Image:
    """A square image at another size."""
    enlarge = image.shape[0] < side
    method = PillowImage.Resampling.NEAREST if enlarge else PillowImage.Resampling.LANCZOS
    return PillowImage.fromarray(image).resize((side, side), method)


def data_address(picture: PillowImage.Image) -> str:
    """The picture as a `data:` address for HTML: as PNG or JPEG, whichever is smaller."""
    encoded = []
    for name, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        encoded.append((len(buffer.getvalue()), name, buffer.getvalue()))
    _, name, data = min(encoded)
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"
