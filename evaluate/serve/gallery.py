"""The images among which the service finds similar ones."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from evaluate.backends.backend import Backend
from evaluate.feature_file import FeatureFile, read_feature_file
from evaluate.search import Searchable
from evaluate.similar import check_searchable, nearest_images
from swav_tf.data.decode import Decoding, UndecodableImage, decode, evaluation_view
from swav_tf.knn import unit_rows
from swav_tf.plumbing.errors import DataError

MOST: Final = 500  # neighbors of an image


def searchable(path: Path) -> FeatureFile:
    """Read a feature file into memory, for many searches."""
    file = read_feature_file(path)
    try:
        return replace(file, features=unit_rows(file.features), normalized=True)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


class Gallery:
    """Features to search, and optionally the folder of their images."""

    def __init__(self, file: Searchable, model: Backend, images: Path | None = None) -> None:
        check_searchable(file, model)
        self._file, self._images = file, images
        self._lock = threading.Lock()  # neither FAISS's settings nor pyarrow's readers are safe among threads
        self._decoding, self._view = Decoding.of(model.data), model.input_view
        self.most = min(MOST, len(file))  # largest k
        self.facts = {"name": file.path.name, "images": len(file), "shown": images is not None}

    def search(self, features: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
        """Return the k nearest images to each row (n, F), 1 <= k <= `most`; see `nearest_images`."""
        with self._lock:
            return nearest_images(self._file, features, k=k)

    def picture(self, row: int) -> bytes | None:
        """Return the model's view of the image of a row as JPEG; None if there is no such row or image.

        Names cannot lead out of the folder.
        """
        if self._images is None or row >= len(self._file):
            return None
        with self._lock:
            name = self._file.entry(row)["name"]
        path = Path(os.path.normpath(self._images / name))
        if not path.is_relative_to(os.path.normpath(self._images)):
            return None
        try:
            view = evaluation_view(decode(path.read_bytes(), self._decoding), self._view)
        except (OSError, UndecodableImage):
            return None
        return cv2.imencode(".jpg", cv2.cvtColor(view, cv2.COLOR_RGB2BGR))[1].tobytes()
