"""Features in numbered parts: a folder that many machines fill, one part each, and that needs no merge.

features.json                   facts of all parts: model, view, images, classes, batch size, number of parts
part-00017-of-00400.npy         features (n, F) float32 of a range of the images
part-00017-of-00400.parquet     name, label and index of each row, written last: with it the part is complete
"""

from __future__ import annotations

import json
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, overload

import numpy as np

from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, atomic_writes, file_sha256
from swav_tf.plumbing.parts import part_name
from swav_tf.plumbing.values import nested_diff

FACTS: Final = "features.json"
FACTS_KEY: Final = b"swav_tf"  # of the facts in the metadata of a Parquet file
TABLE_ROWS: Final = 1_024  # rows of a table that are written together, and read for one name
OPEN_FILES: Final = 64


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1, of the features in a folder."""

    folder: Path
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def base(self) -> Path:
        """The path of its files without their endings."""
        return self.folder / part_name(self.number, self.count)

    @property
    def array(self) -> Path:
        """The path of its features."""
        return self.base.with_name(f"{self.base.name}.npy")

    @property
    def table(self) -> Path:
        """The path of its names, labels and numbers."""
        return self.base.with_name(f"{self.base.name}.parquet")

    def indices(self, images: int, batch_size: int) -> range:
        """Return the numbers of its images: complete batches, so that an image has the same batch in any partition."""
        batches = -(-images // batch_size)
        if self.count > batches:
            raise UsageError(
                f"{images:,} images in batches of {batch_size} can be in at most {batches:,} parts. Received: --part "
                f"{self}. Use fewer parts or a smaller --batch."
            )
        first, end = (
            batches * number // self.count * batch_size for number in (self.number - 1, self.number)
        )
        return range(first, min(end, images))


def has_parts(folder: Path) -> bool:
    """Return whether a folder has features in parts, complete or not."""
    return (folder / FACTS).is_file()


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of all parts."""
    path = folder / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"model", "view", "source", "class_names", "batch_size", "parts"} <= facts.keys():
            raise ValueError("facts are missing")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{folder} must be a folder of features: it has no {FACTS}. Create one with `swav-tf features`."
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged: {error}. Remove it and repeat the command of any part."
        ) from error
    return facts


def start_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts of all parts if this is the first."""
    if not has_parts(folder):
        with atomic_write(folder / FACTS) as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def changed_facts(before: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the facts that were others before, as `nested_diff` does; a run folder may move."""
    changes = nested_diff({key: before.get(key) for key in facts}, facts)
    changes.pop("model.path", None)
    return changes


def write_part(
    part: Part,
    features: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """Write a part: features (n, F) float32, and the number, label and name of each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"name": pa.string(), "label": pa.int64(), "index": pa.int64()}
    with atomic_writes(part.array, part.table) as (array, table):
        np.save(array, features)
        facts = facts | {"part": part.number, "features_sha256": file_sha256(array)}
        schema = pa.schema(list(columns.items()), metadata={FACTS_KEY: json.dumps(facts).encode()})
        rows = pa.Table.from_arrays(
            [pa.array(names, pa.string()), pa.array(labels), pa.array(index)], schema=schema
        )
        pq.write_table(
            rows, table, row_group_size=TABLE_ROWS, use_dictionary=["label"], write_page_checksum=True
        )
        part.table.unlink(missing_ok=True)  # so that old names never meet new features


def part_facts(part: Part) -> dict[str, Any]:
    """Return the facts of a complete part; raise DataError if it is damaged.

    They are those of all parts, `unreadable`, `contents_sha256` and `features_sha256`.
    """
    import pyarrow.parquet as pq

    try:
        facts: dict[str, Any] = json.loads(pq.read_schema(part.table).metadata[FACTS_KEY])
        rows, features = pq.read_metadata(part.table).num_rows, np.load(part.array, mmap_mode="r")
        if features.shape != (rows, facts["feature_dim"]) or features.dtype != np.float32:
            raise ValueError(f"it has {rows} names and features {features.dtype} {features.shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"part {part} is damaged: {error}") from error
    return facts


def problem_of(part: Part, facts: Mapping[str, Any], *, read_all: bool = False) -> str | None:
    """Return why a part cannot be used, None if nothing is found; `read_all` compares checksums too."""
    import pyarrow.parquet as pq

    if not part.table.exists():
        begun = part.base.with_name(f"{part.base.name}.work").exists()
        return f"part {part} is {'not finished' if begun else 'missing'}"
    try:
        own = part_facts(part)
        if read_all:
            pq.read_table(part.table, page_checksum_verification=True)
            if file_sha256(part.array) != own["features_sha256"]:
                return f"part {part} is damaged: its features have another SHA-256"
    except (DataError, OSError) as error:
        return str(error) if isinstance(error, DataError) else f"part {part} is damaged: {error}"
    if other := changed_facts(own, facts):
        changes = ", ".join(f"{key} {mine!r} instead of {ours!r}" for key, (mine, ours) in other.items())
        return f"part {part} has other settings than {FACTS}: {changes}"
    return None


def find_problems(
    folder: Path, *, read_all: bool = False, on_progress: Callable[[int], None] = lambda _: None
) -> list[tuple[Part, str]]:
    """Return the parts that are missing, unfinished or damaged, and why.

    `read_all` reads everything and compares checksums; `on_progress` is called with the number of parts that are done.
    """
    facts, found = read_facts(folder), []
    for part in all_parts(folder, facts):
        if problem := problem_of(part, facts, read_all=read_all):
            found.append((part, problem))
        on_progress(part.number)
    return found


def all_parts(folder: Path, facts: Mapping[str, Any]) -> list[Part]:
    """Return all parts, there or not."""
    return [Part(folder, number, facts["parts"]) for number in range(1, facts["parts"] + 1)]


def command_of(part: Part, facts: Mapping[str, Any], *, fresh: bool) -> str:
    """Return the command line that makes a part."""
    source, model = facts["source"], facts["model"]
    words = ["swav-tf", "features", "digits" if source["kind"] == "digits" else source["path"]]
    words += ["--kind", source["kind"]] + (["--split", source["split"]] if source["split"] else [])
    words += ["--labels", source["labels"]] if source.get("labels") else []
    words += ["--model", model["path"], "--batch", str(facts["batch_size"])]
    # An engine's runner is "TensorRT 10.12 fp16": it has no provider.
    providers = {"cuda", "tensorrt", "openvino"}.intersection(model["runner"].split())
    words += [word for name in providers for word in ("--provider", name)]
    words += shlex.split(model.get("contract", ""))
    words += ["--output", str(part.folder), "--part", str(part)] + ["--fresh"] * fresh
    return shlex.join(words)


class Rows:
    """The features (N, F) of all parts as one array, of which only what is asked for is in memory."""

    ndim: Final = 2
    dtype: Final = np.dtype(np.float32)

    def __init__(self, parts: Sequence[Part], counts: Sequence[int], width: int) -> None:
        self._starts = np.cumsum([0, *counts])
        self.shape = int(self._starts[-1]), width
        # Opened when needed: a process may not have as many files open as there are parts.
        self._array = lru_cache(OPEN_FILES)(lambda i: np.load(parts[i].array, mmap_mode="r"))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the features of consecutive rows, or of rows by number."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            pieces = [self._array(i)[here] for i, here in self.pieces(start, stop)]
            return (
                pieces[0]
                if len(pieces) == 1
                else np.concatenate([np.empty((0, self.shape[1]), self.dtype), *pieces])
            )
        rows = np.asarray(rows)
        found, owners = np.empty((len(rows), self.shape[1]), self.dtype), self._owners(rows)
        for owner in np.unique(owners).tolist():
            here = owners == owner
            found[here] = self._array(owner)[rows[here] - self._starts[owner]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)

    def _owners(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Yield the parts (from 0) of the rows from `start` up to `stop`, with the rows inside each."""
        for i in range(max(0, bisect_right(self._starts, start) - 1), len(self._starts) - 1):
            first, end = int(self._starts[i]), int(self._starts[i + 1])
            if first >= stop:
                break
            if first == end:  # all images of the part are unreadable
                continue
            yield i, slice(max(start - first, 0), min(stop, end) - first)


class Table(Sequence[str]):
    """The names of all rows, and their labels and numbers; read from Parquet when asked for."""

    def __init__(self, parts: Sequence[Part], rows: Rows) -> None:
        import pyarrow.parquet as pq

        self._rows = rows
        self._file = lru_cache(OPEN_FILES)(lambda i: pq.ParquetFile(parts[i].table, memory_map=True))
        self._group = lru_cache(OPEN_FILES)(self._read_group)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """Return the names of rows."""
        start, stop, step = place.indices(len(self)) if isinstance(place, slice) else (place, place + 1, 1)
        names = [
            name for group, here in self._groups(start, stop) for name in group["name"][here].to_pylist()
        ]
        return names[::step] if isinstance(place, slice) else names[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), TABLE_ROWS):
            yield from self[start : start + TABLE_ROWS]

    def entry(self, row: int) -> dict[str, Any]:
        """Return `name`, `label` and `index` of a row."""
        [(group, here)] = self._groups(row, row + 1)
        entry: dict[str, Any] = group[here].to_pylist()[0]
        return entry

    def numbers(self, column: str) -> np.ndarray:
        """Return the `label` or `index` of all rows, (N,) int64."""
        pieces = self._rows.pieces(0, len(self))
        return np.concatenate([self._file(i).read([column])[column].to_numpy() for i, _ in pieces])

    def _groups(self, start: int, stop: int) -> Iterator[tuple[Any, slice]]:
        for i, here in self._rows.pieces(start, stop):
            size = self._file(i).metadata.row_group(0).num_rows
            for group in range(here.start // size, -(-here.stop // size)):
                first = group * size
                yield self._group(i, group), slice(max(here.start - first, 0), here.stop - first)

    def _read_group(self, part: int, group: int) -> Any:
        return self._file(part).read_row_group(group)


@dataclass(frozen=True)
class FeatureParts:
    """The features in a folder, all parts of it."""

    features: Rows
    table: Table
    rows: list[int]  # of each part
    facts: dict[str, Any]


def open_parts(folder: Path, rows: list[int] | None = None) -> FeatureParts:
    """Open the features in a folder of complete parts. Nothing that grows with the images is read.

    The parts are not checked if the number of `rows` of each is known.
    """
    facts = read_facts(folder)
    parts = all_parts(folder, facts)
    if rows is None:
        _refuse_problems(folder)
        rows = [len(np.load(part.array, mmap_mode="r")) for part in parts]
        facts["unreadable"] = sum(part_facts(part)["unreadable"] for part in parts)
        if not any(rows):
            raise DataError(f"At least one image must be readable. Received: {folder}, without any.")
    features = Rows(parts, rows, facts["feature_dim"])
    return FeatureParts(features, Table(parts, features), rows, facts)


def _refuse_problems(folder: Path) -> None:
    if problems := find_problems(folder):
        listed = "; ".join(problem for _, problem in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{folder} must have all its parts. Received: {listed}{more}. To list the commands that compute the "
            f"missing parts, run `swav-tf features {folder} --check`."
        )
