"""Pure operations on one uint8 RGB image, (height, width, 3) in and out.

They follow Pillow: each adjustment clips to [0, 255] and drops the fraction before the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]  # uint8, RGB; OpenCV's stubs have no narrower type
Box = tuple[int, int, int, int]  # top, left, height, width, pixels

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, for R, G, B
_IDENTITY = np.eye(3, 4, dtype=np.float32)
_LUMA_ROWS = np.tile(np.array((*LUMA, 0), np.float32), (3, 1))

cv2.setNumThreads(1)  # the pipeline works on many images at once


def resize_box(image: Image, box: Box, height: int, width: int, out: Image | None = None) -> Image:
    """Return a box of an image, resized bilinearly and antialiased where it shrinks.

    Pillow's antialiasing filter is a triangle as wide as the shrinking factor s, of variance s**2 / 6; plain
    bilinear interpolation has s = 1. Here three or five taps add the missing variance before plain interpolation:
    three times as fast, and within a few gray levels. From s = 3 on, averaging first takes out integer factors.
    Pixels outside the box are never read.
    """
    top, left, box_height, box_width = box
    crop = image[top : top + box_height, left : left + box_width]
    mean_y, mean_x = _averaged(box_height / height), _averaged(box_width / width)
    if mean_y > 1 or mean_x > 1:
        box_height, box_width = round(box_height / mean_y), round(box_width / mean_x)
        crop = cv2.resize(crop, (box_width, box_height), interpolation=cv2.INTER_AREA)
    if box_height > height or box_width > width:
        taps_x, taps_y = _widening(box_width / width, mean_x), _widening(box_height / height, mean_y)
        crop = cv2.sepFilter2D(crop, -1, taps_x, taps_y, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(crop, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def _averaged(shrink: float) -> int:
    """Return how many pixels to average so that a factor below 3, and not near 1, remains."""
    return max(1, int(shrink / 1.5))


def _widening(shrink: float, averaged: int) -> npt.NDArray[Any]:
    """Return taps whose variance, with those of interpolation (1/6) and averaging, is `shrink`**2 / 6."""
    variance = max(0.0, (shrink**2 - 1) / 6 - (1 - 1 / averaged**2) / 12)
    if variance <= 2 / 3:
        return _three_taps(variance)
    return np.convolve(_three_taps(variance / 2), _three_taps(variance / 2))


def _three_taps(variance: float) -> npt.NDArray[np.float32]:
    return np.array([variance / 2, 1 - variance, variance / 2], np.float32)


def flip(image: Image, out: Image | None = None) -> Image:
    """Mirror the image left to right."""
    return cv2.flip(image, 1, dst=out)


def brightness(image: Image, factor: float, out: Image | None = None) -> Image:
    """Multiply every value by `factor` (>= 0)."""
    return _affine(image, factor * _IDENTITY, 0.0, out)


def contrast(image: Image, factor: float, out: Image | None = None) -> Image:
    """Multiply every value's distance from the mean of the gray image by `factor` (>= 0)."""
    red, green, blue, _ = cv2.mean(image)
    mean = int(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 0.5)
    return _affine(image, factor * _IDENTITY, (1 - factor) * mean, out)


def saturation(image: Image, factor: float, out: Image | None = None) -> Image:
    """Multiply every pixel's distance from its own gray by `factor` (>= 0)."""
    return _affine(image, factor * _IDENTITY + (1 - factor) * _LUMA_ROWS, 0.0, out)


def _affine(image: Image, matrix: npt.NDArray[np.float32], shift: float, out: Image | None) -> Image:
    """Multiply every pixel by the first three columns of `matrix` (3, 4), add `shift`, and clip."""
    matrix[:, 3] = shift - 0.499  # OpenCV rounds, Pillow drops the fraction
    return cv2.transform(image, matrix, dst=out)


def hue(image: Image, turn: float, out: Image | None = None) -> Image:
    """Shift every pixel's hue by `turn` (-0.5 to 0.5) of the color circle, in HSV of 8 bits a channel."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    angle = hsv[..., 0]
    np.add(angle, np.uint8(int(turn * 255) % 256), out=angle)  # uint8 wraps around the circle
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=out)


def grayscale(image: Image, out: Image | None = None) -> Image:
    """Return the gray image (ITU-R 601) in three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=out)


def gaussian_blur(image: Image, sigma: float, out: Image | None = None) -> Image:
    """Blur with a Gaussian of standard deviation `sigma` (> 0) pixels, edges repeated.

    The kernel reaches three sigma to each side, whatever the crop's size. Samples of a Gaussian narrower than
    0.6 px no longer have its variance; three taps with that variance, like Pillow's, replace it.
    """
    reach = math.ceil(3 * sigma)
    kernel = _three_taps(sigma**2) if sigma < 0.6 else cv2.getGaussianKernel(2 * reach + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, dst=out, borderType=cv2.BORDER_REPLICATE)


Adjustment = Callable[[Image, float, Image | None], Image]

# In the order of a jitter's settings and random numbers.
ADJUSTMENTS: tuple[Adjustment, ...] = (brightness, contrast, saturation, hue)
