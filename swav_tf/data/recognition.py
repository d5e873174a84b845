"""Detect from its content how to read the images at a path."""

from __future__ import annotations

import logging
import os
from itertools import chain, islice
from typing import Final, NamedTuple

from swav_tf.data import storage
from swav_tf.data.container_files import PARQUET, TAR, contained_kind, is_split
from swav_tf.data.decode import looks_like_an_image
from swav_tf.data.folders import has_images, is_image
from swav_tf.data.leftovers import is_system
from swav_tf.data.lists import is_list
from swav_tf.data.records import starts_like_records
from swav_tf.data.shard_index import is_shard
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable
from swav_tf.recipe.data import Kind


class Found(NamedTuple):
    """The kind of the images at a path, and why."""

    kind: Kind
    why: str


_CONTAINERS: Final[dict[str, Kind]] = {**dict.fromkeys(TAR, "tar"), **dict.fromkeys(PARQUET, "parquet")}
NOT_FOUND: Final = Found("class_folders", "not found")  # to open it as that is an error
CLASSES: Final = Found("class_folders", "one folder for each class")


def recognize(path: str, *, labels: str | None = None) -> Found:
    """Recognize the `data.kind` of the images at a path by its content.

    Folders are taken for classes only if that leaves out no image: none is next to them, and `labels`, a list with
    the labels of the images, is not given.

    Raises:
        DataError: the path cannot be accessed, or is a file that holds no images or only one.
    """
    if is_bundled(path):
        return Found("digits", "bundled")
    with storage.reachable(path):
        place = storage.local_or_remote(path)
        found = _in_folder(place) if storage.is_folder(place) else _in_files(place)
    if labels is not None and found.kind in ("class_folders", "images") and found != NOT_FOUND:
        return Found("images", f"labels are those of {labels}")
    return found


def is_bundled(path: str | None) -> bool:
    """Return whether a path is the name of the bundled digits; warn about a folder of this name."""
    if path == "digits" and os.path.exists(path):
        log_once(
            logging.WARNING,
            "The bundled digits are read, not the folder ./digits. Write ./digits to read it.",
        )
    return path == "digits"


def _in_files(place: str) -> Found:
    """Recognize a file, or files that match a pattern."""
    names = [place] if storage.exists(place) else storage.matching(place)
    if not names:
        return NOT_FOUND
    name = storage.name_of(names[0])
    if is_list(name):
        return Found("list", "a list of paths")
    for ending, kind in _CONTAINERS.items():
        if name.lower().endswith(ending):
            return Found(kind, f"*{ending}" if names[0] != place else f"a {ending[1:]} file")
    head = storage.read_range(names[0], 0, 16) if storage.facts(names[0]).size else b""
    if is_shard(name) or starts_like_records(head):
        return Found("tfrecord", "TFRecord" if names[0] == place else "a pattern of TFRecord shards")
    image = is_image(name) or looks_like_an_image(head)
    raise DataError(
        "Images are read from a folder, a zip or tar file, Parquet, TFRecord shards or a list of paths (.csv, .tsv, "
        f".json, .jsonl, .txt). Received: {printable(place)}, {'an image' if image else 'none of them'}. "
        "Pass the folder that contains it."
    )


def _in_folder(folder: str) -> Found:
    names = [name for name in storage.names_in(folder) if not (name.startswith(".") or is_system(name))]
    images = any(map(is_image, names))
    if not images and any(map(is_shard, names)):
        return Found("tfrecord", "it contains shards")
    if storage.is_remote(folder):  # where each look below is a request
        kinds = [
            kind for ending, kind in _CONTAINERS.items() for name in names if name.lower().endswith(ending)
        ]
        if kinds and not images:
            return Found(kinds[0], f"it contains {kinds[0]} files")
        if images:
            return Found("images", "images at the top, without labels")
    folders = (name for name in names if storage.is_folder(storage.join(folder, name)))
    inside = (name for name in folders if has_images(folder, name))
    classes = list(islice(inside, 2 if not images else 1))
    if images:
        why = "images at the top and in folders: all are read" if classes else "images without folders"
        return Found("images", f"{why}, without labels")
    if not classes and (kind := contained_kind(folder)) is not None:
        return Found(kind, f"it contains {kind} files")
    if not classes:
        return Found("images", "no image was found")
    if len(classes) == 1:
        return Found("images", _one(classes[0]))
    if all(map(is_split, chain(classes, inside))):
        one = next((name for name in classes if name.lower().startswith("train")), classes[0])
        log_once(
            logging.WARNING,
            f"{printable(folder)} has folders of splits, such as {printable(one)}: the images of all are read, "
            f"without labels. To read one of them, pass {printable(storage.join(folder, one))}.",
        )
        return Found("images", "folders of splits: no classes, no labels")
    return CLASSES


def _one(folder: str) -> str:
    return f"one folder with images, {printable(folder)}: no classes, no labels"
