"""The bundled images: scikit-learn's 1,797 handwritten digits, each at a random place on a 32-pixel canvas.

They are enlarged by bilinear interpolation from 8 to 24 pixels. Raw pixels then give a cosine 20-NN (votes weighted
by exp(cosine / 0.07)) of about 0.88, which leaves room for features that ignore the place (16 px: 0.65, 28 px: 0.94).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.image_source import ImageSource
from swav_tf.plumbing.errors import DataError

CANVAS: Final = 32
DIGIT: Final = 24
TRAIN_SHARE: Final = 0.8
_SEED: Final = 1797  # of places and split; part of the data set, not of a run


class Digits(ImageSource):
    """Handwritten digits, uint8 (32, 32, 3) with equal channels, split 1437 train / 360 test.

    Names are `digits/` and the number in scikit-learn's order.
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str) -> None:
        """Load `train` or `test`."""
        if split not in ("train", "test"):
            raise DataError(f"The split of the digits must be train or test; received {split!r}.")
        images, labels, shuffled = _digits()
        train = int(TRAIN_SHARE * len(images))
        members = np.sort(shuffled[:train] if split == "train" else shuffled[train:])
        self._names, self._labels = [f"digits/{member}" for member in members], labels[members]
        self._images = images[members]

    def read(self, index: int) -> Image:
        """Return image `index`, uint8 (32, 32, 3)."""
        image: Image = self._images[index]
        return image


@cache
def _digits() -> tuple[Image, np.ndarray, np.ndarray]:
    """Return all images, uint8 (1797, 32, 32, 3), their labels, and the order that the splits divide."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            'The digits need scikit-learn, which is not installed: pip install "swav-tf[train]".'
        ) from error
    digits, labels = load_digits(return_X_y=True)
    generator = np.random.Generator(np.random.Philox(_SEED))
    corners = generator.integers(0, CANVAS - DIGIT + 1, size=(len(digits), 2))
    shuffled = generator.permutation(len(digits))
    images = np.zeros((len(digits), CANVAS, CANVAS, 3), np.uint8)
    for image, digit, (top, left) in zip(images, digits, corners, strict=True):
        small = digit.reshape(8, 8).astype(np.float32) * (255 / 16)  # levels 0 to 16
        large = cv2.resize(small, (DIGIT, DIGIT), interpolation=cv2.INTER_LINEAR)
        image[top : top + DIGIT, left : left + DIGIT] = np.rint(large)[..., None]
    return images, labels, shuffled
