"""The reference's augmentation in Pillow, one operation at a time, given the draws of a crop.

What torchvision's PIL transforms do, written from their documentation: the yardstick of
the benchmark, and the oracle of the tests of `swav_tf.data`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from swav_tf.data.multicrop import Crop, draw_crops, draw_uniforms
from swav_tf.recipe.pretraining import Augment, CropGroup


def resized_crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    top, left, height, width = box
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize((size, size), Image.Resampling.BILINEAR)


def hue(image: Image.Image, turn: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    shifted = np.asarray(h) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), s, v)).convert("RGB")


ADJUSTMENTS = (
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    hue,
)


def grayscale(image: Image.Image) -> Image.Image:
    gray = image.convert("L")
    return Image.merge("RGB", (gray, gray, gray))


def render(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    view = resized_crop(image, crop.box, size)
    if crop.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for index, amount in crop.jitter or ():
        view = ADJUSTMENTS[index](view, amount)
    if crop.grayscale:
        view = grayscale(view)
    if crop.blur_sigma is not None:
        view = view.filter(ImageFilter.GaussianBlur(crop.blur_sigma))
    return view


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def multicrop(
    image: Image.Image, groups: tuple[CropGroup, ...], augment: Augment, **key: Any
) -> list[np.ndarray]:
    """One image's crops for the draws of `key` (seed, epoch, index): uint8 (count, size, size, 3) a group."""
    uniforms = draw_uniforms(sum(group.count for group in groups), **key)
    crops = iter(draw_crops(uniforms, groups, augment, height=image.height, width=image.width))
    return [
        np.stack([np.asarray(render(image, next(crops), group.size)) for _ in range(group.count)])
        for group in groups
    ]
