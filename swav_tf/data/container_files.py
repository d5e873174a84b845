"""Data sets in a few large files: tar archives or Parquet files, in a folder or matching a pattern."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from swav_tf.data import storage
from swav_tf.data.image_source import ImageSource
from swav_tf.data.leftovers import is_system
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once

PARQUET: Final = (".parquet",)
COMPRESSED_TAR: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
TAR: Final = (".tar", *COMPRESSED_TAR)
# Words in paths by which a data set's files are of a split, as `datasets` of Hugging Face reads them.
_SPLITS: Final = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_DEPTH: Final = 3  # folders below that of the data set


class ContainerSource(ImageSource):
    """Images in a few large files."""

    _files: Sequence[str]

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time of each file."""
        return (str(storage.facts(file)) for file in self._files)


def split_of(name: str) -> str | None:
    """Return the split in a path: `data/train-00000-of-00002.parquet` belongs to train."""
    return next((_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS), None)


def is_split(name: str) -> bool:
    """Return whether a folder is named like a split, with nothing but a year after it: `train`, `val2017`."""
    return name.lower().rstrip("0123456789") in _SPLITS


def container_files(path: str, endings: tuple[str, ...], split: str) -> list[str]:
    """Return the file at a path, the sorted files that match a pattern, or those of a split in a folder.

    A folder whose files name no split, or one other than the default, is read as a whole. Files of other splits are
    left out and reported. An empty split means validation, or test if there is no validation split.

    Raises:
        DataError: there is none, or none of the split.
    """
    place = storage.local_or_remote(path)
    if not storage.is_folder(place):
        files = [place] if storage.exists(place) else storage.matching(place)
        if not files:
            raise DataError(f"No file matches {path}. Check the path.")
        return files
    names = list(_below(place, endings))
    splits = [split_of(name) for name in names]
    known = sorted({found for found in splits if found is not None})
    wanted = _SPLITS.get(split, split) or ("validation" if "validation" in known else "test")
    everything = not known or (len(known) == 1 and split in ("train", ""))
    chosen = [n for n, found in zip(names, splits, strict=True) if everything or found == wanted]
    if not chosen:
        received = f"files of {' and '.join(known)}" if known else "none"
        raise DataError(
            f"{path} must have {endings[0]} files of the split {wanted!r}. Received: {received}. Set data.split to one "
            "of them."
        )
    if len(chosen) < len(names):
        log_once(
            logging.INFO,
            f"{path}: {len(chosen)} of {len(names)} files are read, those of {wanted}; data.split (--split) may be "
            f"{' or '.join(known)}.",
        )
    return [storage.join(place, name) for name in chosen]


def short_names(files: Sequence[str]) -> list[str]:
    """Return the last parts of paths, or the complete ones if these are not unique."""
    names = [storage.name_of(file) for file in files]
    return names if len(set(names)) == len(names) else list(files)


def contained_kind(folder: str) -> Literal["tar", "parquet"] | None:
    """Return whether a folder has Parquet files or tar archives, at most _DEPTH folders down."""
    if next(_below(folder, PARQUET), None) is not None:
        return "parquet"
    return "tar" if next(_below(folder, TAR), None) is not None else None


def _below(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of files with an ending relative to a folder, sorted, without hidden and system ones."""
    remote = storage.is_remote(folder)
    names = storage.remote_files_below(folder) if remote else sorted(_local(folder, "", _DEPTH))
    for name in names:
        parts = name.split("/")
        if parts[-1].lower().endswith(endings) and not any(p.startswith(".") or is_system(p) for p in parts):
            yield name


def _local(folder: str, prefix: str, depth: int) -> Iterator[str]:
    with os.scandir(storage.join(folder, prefix)) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield prefix + entry.name
            elif depth and not entry.name.startswith("."):
                yield from _local(folder, f"{prefix}{entry.name}/", depth - 1)
