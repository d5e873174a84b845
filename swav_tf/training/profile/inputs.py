"""Inputs of a profile: random photographs, and crops that stay on the devices."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from swav_tf.data.image_source import ImageSource
from swav_tf.recipe.pretraining import Recipe

WIDTH, HEIGHT = 500, 375  # of a typical ImageNet file
QUALITY, GRAIN = 92, 22.5  # give files of about 110 KB, as ImageNet's
DIFFERENT = 8


class RandomPhotos(ImageSource):
    """JPEG files in memory: of ImageNet's typical size for crops of 224 pixels, in proportion for others.

    Args:
        recipe: its largest crop gives the size.
        count: length of the source; only DIFFERENT files exist.
    """

    def __init__(self, recipe: Recipe, count: int) -> None:
        scale = max(group.size for group in recipe.crops) / 224
        self.width, self.height = max(16, round(WIDTH * scale)), max(16, round(HEIGHT * scale))
        self.count = count
        generator = np.random.default_rng(0)
        self._files = [_photo(generator, self.width, self.height) for _ in range(DIFFERENT)]

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        """Return one of the files."""
        return self._files[index % DIFFERENT]

    def image_name(self, index: int) -> str:
        """Return a name that contains the index."""
        return f"random/{index}"

    def __str__(self) -> str:
        kilobytes = sum(map(len, self._files)) / DIFFERENT / 1000
        return f"random JPEGs of {self.width} x {self.height} px and {kilobytes:.0f} KB, in memory"


def _photo(generator: np.random.Generator, width: int, height: int) -> bytes:
    colors = generator.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    soft = cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = GRAIN * generator.normal(size=(height, width, 1))
    pixels = np.clip(soft + grain, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def fixed_parts(recipe: Recipe, strategy: tf.distribute.Strategy) -> list[tuple[Any, ...]]:
    """Return a random batch as the training function takes it: per part, each replica's crops on its device."""
    replicas, parts = strategy.num_replicas_in_sync, recipe.train.accumulation_steps
    size = recipe.train.batch_size // replicas // parts
    generator = np.random.default_rng(0)

    def crops(count: int, side: int) -> Any:
        array = generator.integers(0, 256, (size, count, side, side, 3), dtype=np.uint8)
        if replicas == 1:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    # Equal parts cost as much as different ones and need less memory.
    return [tuple(crops(group.count, group.size) for group in recipe.crops)] * parts
