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
_WHOLE: Final = re.compile(r"(-1|[0-9]+)(?:\.0+)?")  # pandas writes integers next to missing values as 3.0


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
    """Return the classes and the class of each label, -1 for none: None, an empty text, or -1 among numbers.

    If all labels are whole numbers, the classes are sorted as such. Texts are classes as they are.
    """
    given = [label.strip() if label else "" for label in labels]
    found = {label: _WHOLE.fullmatch(label) for label in {*given} - {""}}
    if numbers := all(found.values()):
        whole = {label: match[1] for label, match in found.items() if match and match[1] != "-1"}
        given = [whole.get(label, "") for label in given]
    names = sorted({*given} - {""}, key=lambda name: (int(name), name) if numbers else (0, name))
    places = {name: place for place, name in enumerate(names)}
    return tuple(names), np.array([places.get(label, -1) for label in given], np.int64)
