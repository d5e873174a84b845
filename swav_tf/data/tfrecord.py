"""Images in TFRecord shards, numbered through all shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from swav_tf.data import storage
from swav_tf.data.container_files import split_of
from swav_tf.data.image_source import ImageSource
from swav_tf.data.names import PackedNames
from swav_tf.data.records import MalformedExample, Values, decode_example, read_record, record_table
from swav_tf.data.shard_index import (
    IMAGE_KEY,
    LABEL_KEY,
    ShardIndex,
    has_index,
    is_shard,
    is_unfinished,
    read_index,
)
from swav_tf.plumbing.errors import DataError


def open_shards(path: str, *, image_key: str = IMAGE_KEY, label_key: str = LABEL_KEY) -> TFRecordSource:
    """Open the shards in a folder, or those that match a pattern (`/data/train-*`).

    Raises:
        DataError: no shard exists, one is damaged, or they are still being written.
    """
    folder = storage.local_or_remote(path)
    if is_unfinished(folder):
        raise DataError(
            f"The shards in {folder} are incomplete. Repeat the interrupted `swav-tf data shard` command."
        )
    index = read_index(folder) if has_index(folder) else None
    shards = _find_shards(folder) if index is None else [index.path(shard) for shard in index.shards]
    return TFRecordSource(shards, image_key=image_key, label_key=label_key, index=index)


def _find_shards(pattern: str) -> list[str]:
    """Return the sorted shards that match a pattern, or the files in a folder that are named like shards."""
    if storage.is_folder(pattern):
        names = [name for name in storage.names_in(pattern) if is_shard(name) and not name.startswith(".")]
        splits = sorted({split for name in names if (split := split_of(name)) is not None})
        if len(splits) > 1:
            wanted = "train" if "train" in splits else splits[0]
            raise DataError(
                f"The shards of a folder must be of one split. Received: {pattern}, with shards of "
                f"{' and '.join(splits)}. Use a pattern for one split: "
                f"{storage.join(pattern, f'*{wanted}*')}, or {storage.join(pattern, '*')} for all."
            )
        found = [storage.join(pattern, name) for name in names]
    else:
        found = storage.matching(pattern)
    shards = [shard for shard in found if not storage.is_folder(shard)]
    if not shards:
        raise DataError(
            "data.path must be a folder of TFRecord shards, with 'tfrecord' or '-00000-of-00010' in their names, or a "
            f"pattern. No file matches {pattern}."
        )
    return shards


class TFRecordSource(ImageSource):
    """The images of TFRecord shards."""

    def __init__(
        self,
        shards: Sequence[str | Path],
        *,
        image_key: str,
        label_key: str,
        slices: Sequence[slice] | None = None,
        class_names: tuple[str, ...] = (),
        index: ShardIndex | None = None,
    ) -> None:
        """Find the records, in the index if one is given; `slices` selects records of each shard."""
        self.index = index
        self.class_names = class_names if index is None else index.class_names
        self._shards = [str(shard) for shard in shards]
        self._image_key, self._label_key = image_key, label_key
        self._names = PackedNames(()) if index is None else index.names
        if index is None:
            tables = [record_table(shard) for shard in self._shards]
            if slices is not None:
                tables = [table[part] for table, part in zip(tables, slices, strict=True)]
            records, counts = np.concatenate(tables), [len(table) for table in tables]
        else:
            records, counts = index.records, [shard.examples for shard in index.shards]
        self._records = records
        self._ends = np.cumsum(counts)  # by shard: the number of images up to its end
        if not len(self._records):
            raise DataError(f"TFRecord shards need images; the {len(self._shards)} given have no record.")
        try:
            features = self._features(0)
        except OSError:  # reading it reports the damage, and other records are as they should be
            return
        if image_key not in features:
            raise DataError(
                f"data.image_key must name the feature with the encoded image; {image_key!r} is not one of those in "
                f"{self._shards[0]}: {', '.join(sorted(features))}."
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`."""
        values = self._features(index).get(self._image_key, [])
        image = values[0] if len(values) == 1 else None
        if not isinstance(image, bytes):
            raise OSError(f"feature {self._image_key!r} holds {len(values)} images, not one")
        return image

    def label(self, index: int) -> int:
        """Return the integer under `label_key` in record `index`, -1 if there is none."""
        if self.index is not None and self._label_key == LABEL_KEY:
            return int(self.index.records[index, 2])
        values = self._features(index).get(self._label_key, [])
        label = values[0] if values else -1
        return label if isinstance(label, int) else -1

    def image_name(self, index: int) -> str:
        """Return the name that the image had when it was packed; without an index, shard and offset of the record.

        A run can resume on the shards of its folder, because the names are the same.
        """
        if self.index is not None:
            return self._names[index]
        shard, offset, _ = self._place(index)
        return f"{storage.name_of(shard)}@{offset}"

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time of each shard with images of `indices`."""
        here = np.unique(np.searchsorted(self._ends, np.array(indices), side="right")).tolist()
        return (str(storage.facts(self._shards[shard])) for shard in here)

    def _place(self, index: int) -> tuple[str, int, int]:
        """Return shard, offset and length of record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset, length = self._records[index, :2].tolist()
        return self._shards[int(np.searchsorted(self._ends, index, side="right"))], offset, length

    def _features(self, index: int) -> dict[str, Values]:
        try:
            return decode_example(read_record(*self._place(index)))
        except MalformedExample as error:
            raise OSError(f"not a tf.train.Example: {error}") from error
