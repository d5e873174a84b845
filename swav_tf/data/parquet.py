"""Images in Parquet files, such as those of Hugging Face `datasets`: a column of images and perhaps one of labels.

Row groups are read completely, cached, and shared by threads.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.data.columns import LABELS, find_column, number_classes
from swav_tf.data.container_files import PARQUET, ContainerSource, container_files, short_names
from swav_tf.data.names import PackedNames
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable

_IMAGES: Final = ("image", "img", "images", "picture", "photo", "jpg", "png", "bytes", "content")
HELD_BYTES: Final = 256 << 20  # of row groups, in each process
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
        """Find the columns, and read names and labels."""
        self._files = files = container_files(path, PARQUET, split)
        groups, names, paths, labels, size = [], [], [], [], 0
        columns: _Columns | None = None
        for number, (file, name) in enumerate(zip(files, short_names(files), strict=True)):
            with _opened(file) as parquet:
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
        self._groups = _RowGroups(files, columns.leaf, np.array(groups, np.int64))
        self.class_names, self._labels = _classes(path, columns, labels)

    def read(self, index: int) -> bytes:
        """Return the encoded image of row `index`."""
        value = self._groups.value(index)
        if value is None:
            raise OSError("the row has no image")
        return value

    def facts(self, index: int) -> storage.FileFacts:
        """Return the size of image `index`, and the modification time of its file."""
        return storage.FileFacts(len(self.read(index)), storage.facts(self._groups.file(index)).changed_ns)


def _values(parquet: Any, column: str | None, count: int) -> list[Any]:
    """Return the values of a column, None for each row without one."""
    return [None] * count if column is None else _only_leaf(parquet.read([column])).to_pylist()


def _find_columns(file: str, schema: Any, image_key: str, label_key: str) -> _Columns:
    import pyarrow as pa

    def is_binary(kind: Any) -> Any:
        tests = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
        return kind is not None and any(test(kind) for test in tests)

    def is_label(kind: Any) -> Any:
        is_text = (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_dictionary,
        )
        # Integers beside gaps are floats in pandas.
        is_number = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
        return any(test(kind) for test in (*is_text, *is_number))

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
    # NaN, a gap, and fractions are no classes.
    labels = [None if isinstance(label, float) and not label.is_integer() else label for label in labels]
    if not columns.classes:
        return number_classes(None if label is None else str(label) for label in labels)
    numbers = np.array([-1 if label is None else label for label in labels], np.int64)
    if len(numbers) and not -1 <= numbers.min() <= numbers.max() < len(columns.classes):
        raise DataError(
            f"Labels must be numbers of the {len(columns.classes)} classes in {path}. Received: {numbers.min()} to "
            f"{numbers.max()} in column {columns.label}."
        )
    return columns.classes, numbers


class _RowGroups:
    """The images of row groups. The last groups are cached, up to HELD_BYTES, and shared by threads."""

    def __init__(self, files: Sequence[str], leaf: str, table: npt.NDArray[np.int64]) -> None:
        """Prepare to read; `table` has a row for each group: file, group in the file, and number of rows."""
        self.__setstate__((files, leaf, table))

    def __getstate__(self) -> Any:
        return self.files, self._leaf, self._table

    def __setstate__(self, state: tuple[Sequence[str], str, npt.NDArray[np.int64]]) -> None:
        self.files, self._leaf, self._table = state
        self._ends = np.cumsum(self._table[:, 2])
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock, self._reading = threading.Lock(), defaultdict[int, threading.Lock](threading.Lock)
        self._metadata: dict[str, Any] = {}

    def file(self, index: int) -> str:
        """Return the file of a row."""
        return self.files[int(self._table[np.searchsorted(self._ends, index, "right"), 0])]

    def value(self, index: int) -> bytes | None:
        """Return the image of a row, None if it has none."""
        group = int(np.searchsorted(self._ends, index, "right"))
        value: bytes | None = self._get(group)[index - int(self._ends[group] - self._table[group, 2])].as_py()
        return value

    def _get(self, group: int) -> Any:
        with self._lock:
            reading = self._reading[group]
        with reading:  # one thread reads a group, others wait for it
            with self._lock:
                if group in self._held:
                    self._held.move_to_end(group)
                    return self._held[group]
            values = self._read(group)
            with self._lock:
                self._held[group] = values
                while len(self._held) > 1 and sum(v.nbytes for v in self._held.values()) > HELD_BYTES:
                    self._held.popitem(last=False)
            return values

    def _read(self, group: int) -> Any:
        number, place, _ = self._table[group].tolist()
        file = self.files[number]
        try:
            with _opened(file, self._metadata.get(file)) as parquet:
                self._metadata[file] = parquet.metadata
                return _only_leaf(parquet.read_row_group(place, [self._leaf], use_threads=False))
        except DataError as error:
            raise OSError(str(error)) from error


@contextmanager
def _opened(file: str, metadata: Any = None) -> Iterator[Any]:
    """Yield a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (
            storage.opened(file) if storage.is_remote(file) else nullcontext(file) as source,
            pq.ParquetFile(source, metadata=metadata) as parquet,
        ):
            yield parquet
    except pa.ArrowException as error:
        raise DataError(f"{file} must be an intact Parquet file. {error}. Copy it again.") from error


def _only_leaf(table: Any) -> Any:
    """Return the only column of a table, of a struct its only field."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(0)
    while pa.types.is_struct(column.type):
        column = pc.struct_field(column, [0])
    return column
