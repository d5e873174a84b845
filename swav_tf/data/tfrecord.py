"""Read images from TFRecord shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swav_tf.data import storage
from swav_tf.data.names import PackedNames
from swav_tf.data.packing_state import unfinished
from swav_tf.data.shard_index import (
    FOOTER,
    IMAGE_KEY,
    LABEL_KEY,
    MalformedExample,
    ShardIndex,
    Values,
    decode_example,
    has_index,
    read_index,
    record_table,
    shard_path,
    unframed,
)
from swav_tf.plumbing.errors import DataError


def open_shards(path: str, *, image_key: str = IMAGE_KEY, label_key: str = LABEL_KEY) -> TFRecordSource:
    """The images of the shards that a folder or a pattern (`/data/train-*`) names.

    Raises:
        DataError: there is none, one is damaged, or the folder is still being packed.
    """
    folder = storage.local_or_remote(path)
    if has_index(folder):
        index = read_index(folder)
        shards = [shard_path(index, shard) for shard in index.shards]
        return TFRecordSource(shards, image_key=image_key, label_key=label_key, index=index)
    if unfinished(folder):
        raise DataError(
            f"{folder} holds shards that are not all written yet. Give the same swav-tf data shard again: it goes on."
        )
    return TFRecordSource(find_shards(path), image_key=image_key, label_key=label_key)


def find_shards(path: str) -> list[str]:
    """The shards that a folder or a pattern names, sorted.

    In a folder they are the files with `tfrecord` or `-of-` in their names.

    Raises:
        DataError: if there is none.
    """
    pattern = storage.local_or_remote(path)
    if storage.is_folder(pattern):
        names = [name for name in storage.names_in(pattern) if "tfrecord" in name or "-of-" in name]
        found = [storage.join(pattern, name) for name in names if not name.startswith(".")]
    else:
        found = storage.matching(pattern)
    shards = [shard for shard in found if not storage.is_folder(shard)]
    if not shards:
        raise DataError(
            f"data.path must be a folder with TFRecord shards, or a pattern of their names; {path} "
            "names none. Shards in a folder are known by 'tfrecord' or '-of-' in their names."
        )
    return shards


class TFRecordSource:
    """The images of TFRecord shards, numbered through all shards."""

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
        """Find the records, in the index if there is one; `slices` takes only some records of each shard.

        Raises:
            DataError: if a shard is truncated or compressed, there is no record, or the first
                one lacks `image_key`.
        """
        self.index = index
        self.class_names = class_names if index is None else index.class_names
        self._shards = [str(shard) for shard in shards]
        self._image_key, self._label_key = image_key, label_key
        self._names = PackedNames(b"" if index is None else index.names)
        self._records: Any  # int64 (images, 3): shard, offset, length
        if index is not None:
            numbers = np.repeat(np.arange(len(index.shards)), [shard.examples for shard in index.shards])
            self._records = np.concatenate([numbers[:, None], index.records[:, :2]], axis=1)
        else:
            tables = []
            for number, shard in enumerate(self._shards):
                records = record_table(shard)
                if slices is not None:
                    records = records[slices[number]]
                tables.append(np.insert(records, 0, number, axis=1))
            self._records = np.concatenate(tables)
        if not len(self._records):
            raise DataError(f"TFRecord shards must hold images; the {len(self._shards)} given hold no record")
        try:
            features = self._features(0)
        except OSError as error:
            raise DataError(
                f"TFRecord shard {self._shards[0]}, first record: {error}. Copy or write it again."
            ) from error
        if image_key not in features:
            raise DataError(
                f"data.image_key must name the feature that holds the encoded image; {image_key!r} is not "
                f"one of those in {self._shards[0]}: {', '.join(sorted(features))}"
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes:
        """The encoded image of record `index`.

        Raises:
            OSError: if the record cannot be read, is damaged, or holds no image.
        """
        values = self._features(index).get(self._image_key, [])
        image = values[0] if len(values) == 1 else None
        if not isinstance(image, bytes):
            raise OSError(f"feature {self._image_key!r} holds {len(values)} images, not one")
        return image

    def label(self, index: int) -> int:
        """The integer under `label_key` in record `index`, as it stands there; -1 when there is none."""
        if self.index is not None and self._label_key == LABEL_KEY:
            return int(self.index.records[index, 2])
        values = self._features(index).get(self._label_key, [])
        label = values[0] if values else -1
        return label if isinstance(label, int) else -1

    def image_name(self, index: int) -> str:
        """The name that the image had when it was packed; without an index, shard and byte offset of the record.

        So shards of ours have the names of the folder that they were made of, and a run goes on with either.
        """
        if self.index is not None:
            return self._names[index]
        shard, offset, _ = self._records[index].tolist()
        return f"{storage.name_of(self._shards[shard])}@{offset}"

    def _features(self, index: int) -> dict[str, Values]:
        shard, offset, length = self._records[index].tolist()
        data = storage.read_range(self._shards[shard], offset, length + FOOTER)
        try:
            return decode_example(unframed(data, length))
        except MalformedExample as error:
            raise OSError(f"not a tf.train.Example: {error}") from error
