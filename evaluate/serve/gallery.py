"""The images among which the service finds similar ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from evaluate.backends.backend import Backend
from evaluate.feature_file import read_feature_file
from evaluate.similar import check_searchable, nearest_images
from swav_tf.data.decode import Decoding, UndecodableImage, decode, evaluation_view
from swav_tf.knn import unit_rows
from swav_tf.plumbing.errors import DataError

MOST: Final = 500  # neighbors of an image


class Gallery:
    """A feature file of the model, in memory, and perhaps the folder of its images.

    Raises:
        UsageError: the file is missing, or of another model.
        DataError: it is damaged.
    """

    def __init__(self, path: Path, model: Backend, images: Path | None = None) -> None:
        file = read_feature_file(path)
        check_searchable(file, model)
        try:
            self._file = replace(file, features=unit_rows(file.features), normalized=True)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        self._images, self._names = images, frozenset(file.names)
        self._decoding, self._view = Decoding.of(model.data), model.input_view
        self.most = min(MOST, len(file))  # largest k
        self.facts = {"name": path.name, "images": len(file), "shown": images is not None}

    def search(self, features: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
        """Return the k nearest images to each row (n, F), 1 <= k <= `most`; see `nearest_images`."""
        return nearest_images(self._file, features, k=k)

    def picture(self, name: str) -> bytes | None:
        """Return the model's view of an image as JPEG; None unless images may be shown and one has that name.

        Names are those of the feature file, and lead to no file outside of the folder.
        """
        if self._images is None or name not in self._names:
            return None
        path = Path(os.path.normpath(self._images / name))
        if not path.is_relative_to(os.path.normpath(self._images)):
            return None
        try:
            view = evaluation_view(decode(path.read_bytes(), self._decoding), self._view)
        except (OSError, UndecodableImage):
            return None
        return cv2.imencode(".jpg", cv2.cvtColor(view, cv2.COLOR_RGB2BGR))[1].tobytes()
