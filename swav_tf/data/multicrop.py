"""Multi-crop: all crops of one image, each augmented independently.

Random numbers are a pure function of (seed, epoch, image, crop): they do not depend on threads, on other images,
or on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
import numpy.typing as npt

from swav_tf.data import augment as ops
from swav_tf.recipe.pretraining import Augment, CropGroup

Uniforms = npt.NDArray[np.float64]

ATTEMPTS: Final = 10
JITTER_ORDERS: Final = tuple(permutations(range(len(ops.ADJUSTMENTS))))

# Columns of a crop's row of uniform numbers.
_AREA, _RATIO = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _ORDER, _GRAY, _BLUR, _SIGMA = range(2 * ATTEMPTS, 2 * ATTEMPTS + 8)
_FACTORS = slice(2 * ATTEMPTS + 8, 2 * ATTEMPTS + 12)
UNIFORMS_PER_CROP: Final = 2 * ATTEMPTS + 12


@dataclass(frozen=True, slots=True)
class Crop:
    """The drawn parameters of one crop; `None` for a step that was not drawn."""

    box: ops.Box  # top, left, height, width in the image, pixels
    flip: bool
    jitter: tuple[tuple[int, float], ...] | None  # (index in ADJUSTMENTS, factor or turn), in order
    grayscale: bool
    blur_sigma: float | None  # pixels


def draw_uniforms(crops: int, *, seed: int, epoch: int, index: int, attempt: int = 0) -> Uniforms:
    """Draw the random numbers of one image's crops, (crops, UNIFORMS_PER_CROP), uniform in [0, 1).

    A counter-based generator (Philox) has seed and image as key, epoch and attempt as counter, so no two images,
    epochs or attempts share a number.
    """
    generator = np.random.Philox(
        key=np.array([seed, index], np.uint64), counter=np.array([0, 0, attempt, epoch], np.uint64)
    )
    return np.random.Generator(generator).random((crops, UNIFORMS_PER_CROP))


def crop_boxes(
    uniforms: Uniforms,
    *,
    height: int,
    width: int,
    scales: Sequence[tuple[float, float]],
    aspect_ratio: tuple[float, float],
) -> list[ops.Box]:
    """Return one random box of a height x width image for each row of uniforms.

    The area is uniform in the row's scale of the image's area, width / height log-uniform in `aspect_ratio`. Of ten
    tries the first that fits is placed uniformly; if none fits, the box is the largest centered one of an allowed
    ratio.
    """
    least, greatest = np.array(scales).T[..., None]
    area = height * width * (least + (greatest - least) * uniforms[:, _AREA])
    low, high = np.log(aspect_ratio)
    ratio = np.exp(low + (high - low) * uniforms[:, _RATIO])
    widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = np.argmax(fits, axis=1)
    boxes: list[ops.Box] = []
    for row, attempt in enumerate(first.tolist()):
        if fits[row, attempt]:
            h, w = int(heights[row, attempt]), int(widths[row, attempt])
            top = int(uniforms[row, _TOP] * (height - h + 1))
            left = int(uniforms[row, _LEFT] * (width - w + 1))
        else:
            nearest = min(max(width / height, aspect_ratio[0]), aspect_ratio[1])
            h = min(height, max(1, round(width / nearest)))
            w = min(width, max(1, round(height * nearest)))
            top, left = (height - h) // 2, (width - w) // 2
        boxes.append((top, left, h, w))
    return boxes


def draw_crops(
    uniforms: Uniforms, groups: Sequence[CropGroup], augment: Augment, *, height: int, width: int
) -> list[Crop]:
    """Return the parameters of the groups' crops of a height x width image, one for each row of uniforms."""
    boxes = crop_boxes(
        uniforms,
        height=height,
        width=width,
        scales=[group.scale for group in groups for _ in range(group.count)],
        aspect_ratio=augment.aspect_ratio,
    )
    jitter = augment.jitter
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation)
    ranges = [(max(0.0, 1 - x), 1 + x) for x in strengths] + [(-jitter.hue, jitter.hue)]
    crops = []
    for box, row in zip(boxes, uniforms.tolist(), strict=True):
        factors = [low + (high - low) * u for (low, high), u in zip(ranges, row[_FACTORS], strict=True)]
        order = JITTER_ORDERS[int(row[_ORDER] * len(JITTER_ORDERS))]
        low, high = augment.blur.sigma
        sigma = low + (high - low) * row[_SIGMA]
        crops.append(
            Crop(
                box=box,
                flip=row[_FLIP] < augment.flip_probability,
                jitter=tuple((i, factors[i]) for i in order) if row[_JITTER] < jitter.probability else None,
                grayscale=row[_GRAY] < augment.grayscale_probability,
                blur_sigma=sigma if row[_BLUR] < augment.blur.probability else None,
            )
        )
    return crops


def render(image: ops.Image, crop: Crop, out: ops.Image) -> None:
    """Cut one crop from the image and augment it, into `out`, (size, size, 3)."""
    height, width, _ = out.shape
    if crop.flip:
        ops.flip(ops.resize_box(image, crop.box, height, width), out)
    else:
        ops.resize_box(image, crop.box, height, width, out)
    for index, amount in crop.jitter or ():
        ops.ADJUSTMENTS[index](out, amount, out)
    if crop.grayscale:
        ops.grayscale(out, out)
    if crop.blur_sigma is not None:
        ops.gaussian_blur(out, crop.blur_sigma, out)


class MultiCrop:
    """Cut one image into its crops (docs/algorithm.md, "Crops"); the device normalizes them."""

    def __init__(self, crops: tuple[CropGroup, ...], augment: Augment) -> None:
        self.groups, self.augment = crops, augment
        self.crop_count = sum(group.count for group in crops)

    def __call__(
        self, image: ops.Image, *, seed: int, epoch: int, index: int, attempt: int = 0
    ) -> list[ops.Image]:
        """Return one uint8 (count, size, size, 3) for each group.

        `index` is the number of the image in its source. `attempt` is above 0 for an image that replaces an unreadable
        one; its crops differ from those in its own place.
        """
        uniforms = draw_uniforms(self.crop_count, seed=seed, epoch=epoch, index=index, attempt=attempt)
        height, width = image.shape[:2]
        crops = iter(draw_crops(uniforms, self.groups, self.augment, height=height, width=width))
        result = []
        for group in self.groups:
            views = np.empty((group.count, group.size, group.size, 3), np.uint8)
            for out in views:
                render(image, next(crops), out)
            result.append(views)
        return result
