"""Images by a list of their paths, with labels or without: CSV, TSV, JSON, JSON lines, or one path per line."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from swav_tf.data import storage
from swav_tf.data.columns import LABELS, find_column, number_classes
from swav_tf.data.folders import Files, is_image
from swav_tf.data.image_source import ImageSource
from swav_tf.data.leftovers import LeftOut
from swav_tf.data.subset import Subset, find_images, first_of
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import decode_text
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable

_ENDINGS: Final = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
_PATHS: Final = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name", "image_id",
    "img", "name", "id",
)  # fmt: skip


def is_list(name: str) -> bool:
    """Return whether a name is that of a list."""
    return name.lower().endswith(_ENDINGS)


class ListedImages(Files):
    """The images that a list names, in its order; names are relative to the list's folder, or complete."""

    kind = "list"

    def __init__(self, path: str, *, image_key: str, label_key: str) -> None:
        """Read the list; images that are missing, empty or of an unknown format are skipped and counted."""
        self._list = storage.local_or_remote(path)
        rows = _read_rows(self._list, image_key, label_key)
        names = [name for name, _ in rows]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(
                f"{path} must name each image once. Received: {len(twice):,} repeated ones: {first_of(twice)}."
            )
        root, left_out, kept = storage.folder_of(self._list), LeftOut(), []
        for (name, label), (_, size) in zip(rows, storage.with_sizes(root, names), strict=True):
            last = storage.name_of(name)
            if not is_image(last) and ("." in last or size is None):
                left_out.add(last, name)
            elif not size:
                left_out.add_picture("missing or not accessible" if size is None else "empty", name)
            else:
                kept.append((name, label))
        if left_out.pictures > len(kept) or not kept:
            raise DataError(
                f"{path} must list images by absolute paths or paths relative to {root}. Received: {len(kept):,} "
                f"images; left out: {left_out}. Move the list to the folder that its paths are relative to."
            )
        super().__init__(root, (name for name, _ in kept), left_out, place=path)
        self.class_names, self._labels = number_classes(label for _, label in kept)

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time of the list and of each file."""
        yield str(storage.facts(self._list))
        yield from super().stamps(indices)


class RelabeledImages(Subset):
    """Images of another source with the labels of a list."""

    def __init__(self, source: ImageSource, path: str, *, image_key: str, label_key: str) -> None:
        """Find the images that the list names, by their path or file name; the others have no label."""
        super().__init__(source, range(len(source)))
        self._list = storage.local_or_remote(path)
        rows = [(name, label) for name, label in _read_rows(self._list, image_key, label_key) if label]
        if not rows:
            raise DataError(
                f"data.labels must be a list with a column of labels ({', '.join(LABELS)}, or data.label_key=COLUMN). "
                f"Received: {path}, without labels."
            )
        names = [name for name, _ in rows]
        found = find_images(names, source, path, partly=True)
        labeled = {place: index for place, index in enumerate(found) if index is not None}
        if 2 * len(labeled) < min(len(rows), len(source)):
            find_images(names, source, path)  # raises
        self.class_names, labels = number_classes(rows[place][1] for place in labeled)
        self._labels = np.full(len(source), -1, np.int64)
        self._labels[list(labeled.values())] = labels
        remarks = {
            "images have no label": (len(source) - len(labeled), len(source)),
            "names are of no image": (len(rows) - len(labeled), len(rows)),
        }
        if text := "; ".join(f"{n:,} of {of:,} {what}" for what, (n, of) in remarks.items() if n):
            log_once(logging.WARNING, f"{path}: {text}.")

    def label(self, index: int) -> int:
        """Return the number of the class of image `index`, -1 without a label."""
        return ImageSource.label(self, index)  # not the source's

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time of the list, then those of the images."""
        yield str(storage.facts(self._list))
        yield from super().stamps(indices)


def _read_rows(path: str, image_key: str, label_key: str) -> list[tuple[str, str | None]]:
    """Return path, with `/` between folders, and label of each row that has a path."""
    try:
        columns, rows = _parse(decode_text(storage.read_file(path)), storage.name_of(path).lower())
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"A list of images must be CSV, TSV, JSON, JSON lines or text, in UTF-8. Received: {path}: {error}."
        ) from error
    image = find_column(path, columns, image_key, _PATHS)
    if image is None:
        raise DataError(
            f"{path} must have a column of paths: {', '.join(_PATHS)}, or data.image_key=COLUMN. Received: "
            f"{first_of(map(printable, columns)) or 'nothing'}."
        )
    label = find_column(path, columns, label_key, LABELS)
    if unread := [name for name in columns if name not in (image, label)]:
        labels = f"labels from {label!r}" if label else "without labels: set data.label_key=COLUMN for some"
        text = f"{path}: paths are read from column {image!r}, {labels}; unread columns: {first_of(unread)}."
        log_once(logging.INFO, text)
    return [
        (_relative(path, str(row[image]).strip()), _label(path, row.get(label) if label else None))
        for row in rows
        if row.get(image) and str(row[image]).strip()
    ]


def _relative(path: str, name: str) -> str:
    """Return a name with `/` between folders, unless a file with backslashes in its name exists."""
    if "\\" in name and not storage.exists(storage.join(storage.folder_of(path), name)):
        name = name.replace("\\", "/")
    return name.removeprefix("./")


def _label(path: str, value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise DataError(f"{path} must have one label for each image. Received: {str(value)[:80]!r}.")
    text = "" if value is None else str(value).strip()
    return text or None


def _parse(text: str, name: str) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Return the column names and the rows; without a heading the columns are `path` and `label`.

    Raises:
        ValueError, csv.Error: the text is not of the format of its name.
    """
    if name.endswith((".json", ".jsonl", ".ndjson")):
        lines = [line for line in text.splitlines() if line.strip()]
        values = json.loads(text) if name.endswith(".json") else list(map(json.loads, lines))
        if isinstance(values, dict):
            values = [{"path": key, "label": value} for key, value in values.items()]
        if not isinstance(values, list):
            raise ValueError("neither an array nor an object")
        rows = [value if isinstance(value, dict) else {"path": value} for value in values]
        return list(dict.fromkeys(key for row in rows for key in row)), rows
    if name.endswith(".txt"):
        return ["path"], [{"path": line} for line in text.splitlines()]
    first = text.partition("\n")[0]
    delimiter = "\t" if name.endswith(".tsv") else max(",;\t", key=first.count)
    cells = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(map(str.strip, row))]
    headings = [cell.strip() for cell in cells[0]] if cells else []
    if headings and is_image(storage.name_of(headings[0].replace("\\", "/"))):
        headings = ["path", "label"][: len(headings)]
    else:
        cells = cells[1:]
    return headings, [dict(zip(headings, row, strict=False)) for row in cells]
