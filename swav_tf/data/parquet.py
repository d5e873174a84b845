"""Images in Parquet files, such as those of Hugging Face `datasets`: a column of images and perhaps one of labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.data.columns import LABELS, find_column, number_classes
from swav_tf.data.container_files import PARQUET, ContainerSource, container_files, short_names
from swav_tf.data.names import PackedNames
from swav_tf.data.row_groups import HELD_BYTES, RowGroups, only_leaf, opened
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable

_IMAGES: Final = ("image", "img", "images", "picture", "photo", "jpg", "png", "bytes", "content")
_LARGE_GROUP: Final = 4 << 20  # bytes read for one image, above which packing is advised


class _Columns(NamedTuple):
    image: str
    leaf: str  # the part of it with the bytes
    path: str | None  # the part of it with the file's name
    label: str | None
    classes: tuple[str, ...]  # that the labels number; empty: they are names or any numbers


class ParquetSource(ContainerSource):
    """The images of Parquet files, numbered through all files. For one image its row group is read.

    Names are the paths that are stored with the images; if these are not unique, file and row.
    """

    kind = "parquet"

    def __init__(self, path: str, *, split: str, image_key: str, label_key: str) -> None:
        """Find the columns, and read names and labels.

        Raises:
            DataError: a file is damaged, there are no images, or files differ in their columns.
        """
        self._files = files = container_files(path, PARQUET, split)
        groups, names, paths, labels, size = [], [], [], [], 0
        columns: _Columns | None = None
        for number, (file, name) in enumerate(zip(files, short_names(files), strict=True)):
            with opened(file) as parquet:
                found = _find_columns(file, parquet.schema_arrow, image_key, label_key)
                columns = columns or found
                if found != columns:
                    raise DataError(f"The files of {path} must have the same columns. {file} has others.")
                count = parquet.metadata.num_rows
                names += [f"{name}@{row}" for row in range(count)]
                paths += _values(parquet, found.path, count)
                labels += _values(parquet, found.label, count)
                for group in range(parquet.metadata.num_row_groups):
                    facts = parquet.metadata.row_group(group)
                    groups.append((number, group, facts.num_rows))
                    size += facts.total_byte_size
        if columns is None or not names:
            raise DataError(f"{path} must have rows with images. Received: {len(files)} files, without any.")
        if size > HELD_BYTES and size > _LARGE_GROUP * len(groups):
            text = (
                f"{path}: training reads {size / len(groups) / 2**20:,.0f} MiB for each image, a row group."
            )
            log_once(logging.WARNING, f"{text} `swav-tf data shard` packs the images for random access.")
        unique = None not in paths and len(set(paths)) == len(paths)
        self._names = PackedNames(map(str, paths if unique else names))
        self._groups = RowGroups(files, columns.leaf, np.array(groups, np.int64))
        self.class_names, self._labels = _classes(path, columns, labels)

    def read(self, index: int) -> bytes:
        """Return the encoded image of row `index`.

        Raises:
            OSError: the file cannot be read or is damaged, or the row has no image.
        """
        value = self._groups.value(index)
        if value is None:
            raise OSError("the row has no image")
        return value

    def facts(self, index: int) -> storage.FileFacts:
        """Return the size of image `index`, and the modification time of its file."""
        return storage.FileFacts(len(self.read(index)), storage.facts(self._groups.file(index)).changed_ns)


def _values(parquet: Any, column: str | None, count: int) -> list[Any]:
    """Return the values of a column, None for each row without one."""
    return [None] * count if column is None else only_leaf(parquet.read([column])).to_pylist()


def _find_columns(file: str, schema: Any, image_key: str, label_key: str) -> _Columns:
    import pyarrow as pa

    def is_binary(kind: Any) -> Any:
        return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_label(kind: Any) -> Any:
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        return text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)

    features = _features(schema)
    fields = {field.name: field.type for field in schema}
    structs = {
        name: {part.name: part.type for part in t} for name, t in fields.items() if pa.types.is_struct(t)
    }
    images = [n for n, t in fields.items() if is_binary(t) or is_binary(structs.get(n, {}).get("bytes"))]
    declared = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    image = find_column(file, images, image_key, [*map(str.lower, declared), *_IMAGES])
    image = image or (images[0] if len(images) == 1 else None)
    if image is None:
        raise DataError(
            f"{file} must have a column of encoded images, of binary type or a struct with `bytes`; data.image_key "
            f"chooses one of several. Received: {', '.join(map(printable, fields))}."
        )
    named = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = find_column(file, [n for n, t in fields.items() if is_label(t)], label_key, LABELS)
    label = label or (named[0] if len(named) == 1 else None)
    if label is None and named:
        log_once(
            logging.INFO, f"{file}: no labels are read: set data.label_key to {' or '.join(named)} for some."
        )
    classes = tuple(map(str, features.get(label or "", {}).get("names") or ()))
    parts = structs.get(image, {})
    path = f"{image}.path" if "path" in parts else None
    return _Columns(image, f"{image}.bytes" if parts else image, path, label, classes)


def _features(schema: Any) -> dict[str, Any]:
    """Return the features that `datasets` wrote next to the columns, by name."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _classes(
    path: str, columns: _Columns, labels: Sequence[Any]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the names of the classes and the class of each row, -1 without a label."""
    if not columns.classes:
        return number_classes(None if label is None else str(label) for label in labels)
    numbers = np.array([-1 if label is None else label for label in labels], np.int64)
    if len(numbers) and not -1 <= numbers.min() <= numbers.max() < len(columns.classes):
        raise DataError(
            f"Labels must be numbers of the {len(columns.classes)} classes in {path}. Received: {numbers.min()} to "
            f"{numbers.max()} in column {columns.label}."
        )
    return columns.classes, numbers
