"""Find the columns of images and labels in a table, and number the classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from swav_tf.data.shard_index import IMAGE_KEY, LABEL_KEY
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable

LABELS: Final = ("label", "labels", "class", "class_name", "cls", "category", "target")
_WHOLE: Final = re.compile(r"(\d+)\.0+")  # as pandas writes integers next to missing values


def find_column(place: str, columns: Sequence[str], key: str, usual: Sequence[str]) -> str | None:
    """Return the column that a recipe names, else the first with a usual name in any case, else None.

    `key` is `data.image_key` or `data.label_key`, whose defaults are names of TFRecord and name no column. `usual` are
    lower-case names, the most usual one first. `place` is the file, for messages.

    Raises:
        DataError: the file has no column of the name in the recipe.
    """
    if key in columns:
        return key
    if key not in (IMAGE_KEY, LABEL_KEY):
        raise DataError(
            f"data.image_key and data.label_key must name columns of {place}. Received: {key!r}; the columns are "
            f"{', '.join(map(printable, columns))}."
        )
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def number_classes(labels: Iterable[str | None]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes, sorted as numbers if all are numbers, and the class of each label, -1 for None."""
    cleaned = [_WHOLE.sub(r"\1", label.strip()) if label else None for label in labels]
    found = {label for label in cleaned if label}
    numbers = all(label.isascii() and label.isdecimal() for label in found)
    names = sorted(found, key=lambda name: (int(name), name) if numbers else (0, name))
    places: dict[str | None, int] = {name: place for place, name in enumerate(names)}
    return tuple(names), np.array([places.get(label, -1) for label in cleaned], np.int64)
