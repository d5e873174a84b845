"""Real photos, and folders of small files made from them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from swav_tf.recipe.data import Data
from swav_tf.recipe.pretraining import Recipe


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photo of a pagoda, uint8 (427, 640, 3)."""
    return np.ascontiguousarray(load_sample_images().images[0])


@pytest.fixture(scope="session")
def small_photo(photo) -> np.ndarray:
    """The same, (80, 120, 3)."""
    return cv2.resize(photo, (120, 80), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="session")
def encoded():
    """encoded(pixels, format, **options) -> the file's bytes."""

    def encode(pixels, format="JPEG", **options):
        buffer = io.BytesIO()
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def folder(tmp_path, small_photo, encoded):
    """24 JPEG files, each with its own gray level in the left half, which identifies the image of a crop."""
    for i in range(24):
        pixels = small_photo.copy()
        pixels[:, :60] = 10 * i
        (tmp_path / f"{i:02d}.jpg").write_bytes(encoded(pixels))
    return tmp_path


@pytest.fixture
def recipe():
    """recipe(path, **train) -> two groups of small crops, batch size 8."""

    def make(path, *, data=None, augment=None, **train):
        return Recipe(
            name="test",
            data=Data(kind="images", path=str(path), **(data or {})),
            crops=[
                {"count": 2, "size": 32, "scale": (0.14, 1.0)},
                {"count": 3, "size": 16, "scale": (0.05, 0.14)},
            ],
            augment=augment or {},
            optimizer={"peak_learning_rate": 1.0},
            train={"epochs": 2, "batch_size": 8, **train},
        )

    return make
