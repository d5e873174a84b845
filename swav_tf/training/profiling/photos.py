"""Random photographs, for a profile where no images are at hand. No TensorFlow."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from swav_tf.recipe import Recipe

WIDTH, HEIGHT, BYTES = 500, 375, 110_000  # of ImageNet's files, typically
QUALITY: Final = 92
DIFFERENT: Final = 8


class RandomPhotos:
    """JPEG files in memory, of ImageNet's size for crops of 224 pixels and in proportion for others.

    Args:
        recipe: its largest crop gives the size.
        count: so many images they stand for; there are DIFFERENT ones.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, count: int) -> None:
        scale = max(group.size for group in recipe.crops) / 224
        self.width, self.height = max(16, round(WIDTH * scale)), max(16, round(HEIGHT * scale))
        self.count = count
        generator = np.random.default_rng(0)
        target = BYTES * self.width * self.height / (WIDTH * HEIGHT)
        self._files = [_photo(generator, self.width, self.height, target) for _ in range(DIFFERENT)]

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        """One of the files."""
        return self._files[index % DIFFERENT]

    def label(self, index: int) -> int:
        """-1: they have no classes."""
        return -1

    def image_name(self, index: int) -> str:
        """Its number."""
        return f"random/{index}"

    def __str__(self) -> str:
        """What they are, for messages."""
        kilobytes = sum(map(len, self._files)) / DIFFERENT / 1000
        return f"random JPEGs of {self.width} x {self.height} px and {kilobytes:.0f} KB, in memory"


def _photo(generator: np.random.Generator, width: int, height: int, size: float) -> bytes:
    """Soft colours, and the grain that brings the file to that size."""
    colours = generator.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    soft = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = generator.normal(size=(height, width, 1))
    low, high, file = 0.0, 60.0, b""
    for _ in range(10):
        strength = (low + high) / 2
        pixels = np.clip(soft + strength * grain, 0, 255).astype(np.uint8)
        file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        low, high = (strength, high) if len(file) < size else (low, strength)
    return file
