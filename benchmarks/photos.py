"""Photos as ImageNet has them, 500 x 375 JPEG files of about 110 KB, made from scikit-learn's two."""

from __future__ import annotations

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT, BYTES = 500, 375, 110_000


def photos(count: int) -> list[bytes]:
    """Cut at random places, with the grain that brings them to that size at quality 92."""
    generator = np.random.default_rng(0)
    originals = load_sample_images().images
    files = []
    for i in range(count):
        original = originals[i % 2]
        top, left = generator.integers(0, (original.shape[0] - HEIGHT + 1, original.shape[1] - WIDTH + 1))
        cut = original[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
        grain = generator.normal(size=(*cut.shape[:2], 1))
        low, high = 0.0, 40.0
        for _ in range(12):  # the file grows with the grain
            strength = (low + high) / 2
            pixels = np.clip(cut + strength * grain, 0, 255).astype(np.uint8)
            file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
            low, high = (strength, high) if len(file) < BYTES else (low, strength)
        files.append(file)
    return files


class Photos:
    """The files as a source of images."""

    class_names: tuple[str, ...] = ()

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return self.files[index]

    def label(self, index: int) -> int:
        return -1

    def image_name(self, index: int) -> str:
        return str(index)
