"""Random access to images in TFRecord shards of tf.train.Example.

A shard is a row of records, each an 8-byte length, its 4-byte checksum, the data and
the data's 4-byte checksum. One walk over the lengths tells where every record is.
"""

from __future__ import annotations

import glob
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swav_tf.errors import DataError

_HEADER: Final = 12  # length and its checksum
_FOOTER: Final = 4  # the data's checksum


def find_shards(path: str) -> list[Path]:
    """The shards that a folder or a pattern (`/data/train-*`) names, sorted.

    In a folder they are the files with `tfrecord` or `-of-` in their names.

    Raises:
        DataError: if there is none.
    """
    pattern = os.path.expanduser(path)
    if os.path.isdir(pattern):
        files = [file for file in Path(pattern).iterdir() if "tfrecord" in file.name or "-of-" in file.name]
    else:
        files = [Path(name) for name in glob.glob(pattern)]
    shards = sorted(file for file in files if file.is_file())
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
    ) -> None:
        """Index the shards; `slices` takes only some records of each.

        Raises:
            DataError: if a shard is truncated or compressed, there is no record, or the first
                one lacks `image_key`.
        """
        self.class_names = class_names
        self._shards = [str(shard) for shard in shards]
        self._image_key, self._label_key = image_key, label_key
        tables = []
        for number, shard in enumerate(self._shards):
            records = _record_table(shard)
            if slices is not None:
                records = records[slices[number]]
            tables.append(np.insert(records, 0, number, axis=1))
        self._records: Any = np.concatenate(tables)  # int64 (images, 3): shard, offset, length
        if not len(self._records):
            raise DataError(f"TFRecord shards must hold images; the {len(self._shards)} given hold no record")
        features = self._features(0)
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
            OSError: if the record cannot be read, or holds no image.
        """
        features = self._features(index)
        values: Sequence[bytes] = (
            features[self._image_key].bytes_list.value if self._image_key in features else ()
        )
        if len(values) != 1:
            raise OSError(f"feature {self._image_key!r} holds {len(values)} images, not one")
        return bytes(values[0])

    def label(self, index: int) -> int:
        """The integer under `label_key` in record `index`, as it stands there; -1 when there is none."""
        features = self._features(index)
        values: Sequence[int] = (
            features[self._label_key].int64_list.value if self._label_key in features else ()
        )
        return int(values[0]) if len(values) else -1

    def image_name(self, index: int) -> str:
        """Shard and byte offset of record `index`."""
        shard, offset, _ = self._records[index].tolist()
        return f"{os.path.basename(self._shards[shard])}@{offset}"

    def _features(self, index: int) -> Any:
        import tensorflow as tf

        shard, offset, length = self._records[index].tolist()
        # Opened for each record: a thousand shards held open would exceed the usual limit of a process.
        file = os.open(self._shards[shard], os.O_RDONLY)
        try:
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        try:
            return tf.train.Example.FromString(data).features.feature
        except Exception as error:  # protobuf's DecodeError, whichever of its implementations is in use
            raise OSError(f"not a tf.train.Example: {error}") from error


def _record_table(shard: str) -> npt.NDArray[np.int64]:
    """Offset and length of the data of each record in a shard, (records, 2)."""
    records: list[tuple[int, int]] = []
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if os.pread(file.fileno(), 2, 0) == b"\x1f\x8b":
            raise DataError(f"TFRecord shards must be uncompressed; {shard} is a gzip file. Unpack it first.")
        position = 0
        while position < size:
            header = os.pread(file.fileno(), _HEADER, position)
            length = struct.unpack_from("<Q", header)[0] if len(header) == _HEADER else size
            end = position + _HEADER + length + _FOOTER
            if end > size:
                raise DataError(
                    f"TFRecord shard {shard} is truncated or not a TFRecord file: record {len(records)}, at "
                    f"byte {position}, does not end within the file's {size} bytes. Copy or write it again."
                )
            records.append((position + _HEADER, length))
            position = end
    return np.array(records, np.int64).reshape(-1, 2)
