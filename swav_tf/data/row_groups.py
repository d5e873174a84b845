"""Row groups of Parquet files: read completely, cached, and shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.plumbing.errors import DataError

HELD_BYTES: Final = 256 << 20  # of row groups, in each process


class RowGroups:
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
            with opened(file, self._metadata.get(file)) as parquet:
                self._metadata[file] = parquet.metadata
                return only_leaf(parquet.read_row_group(place, [self._leaf], use_threads=False))
        except DataError as error:
            raise OSError(str(error)) from error


@contextmanager
def opened(file: str, metadata: Any = None) -> Iterator[Any]:
    """Yield a Parquet file.

    Raises:
        DataError: it is damaged, or no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not storage.is_remote(file):
            with pq.ParquetFile(file, metadata=metadata) as parquet:
                yield parquet
        else:
            with storage.opened(file) as remote, pq.ParquetFile(remote, metadata=metadata) as parquet:
                yield parquet
    except pa.ArrowException as error:
        raise DataError(f"{file} must be an intact Parquet file. {error}. Copy it again.") from error


def only_leaf(table: Any) -> Any:
    """Return the only column of a table, of a struct its only field."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(0)
    while pa.types.is_struct(column.type):
        column = pc.struct_field(column, [0])
    return column
