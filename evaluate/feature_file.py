"""Feature files: .npz, .npy and .parquet.

.npz      one file, read into memory. For up to some 100,000 images.
.npy      a plain array (N, F) that can be memory-mapped, so that k-NN needs no memory for it; next to it
          NAME.npy.csv (name, label, class and source index of each row) and NAME.npy.json (facts).
.parquet  one file, a row per image, for data frames and databases; the facts are in the schema's metadata under
          `swav_tf`. Folders of part-NNNNN.parquet, as older versions wrote, can be read.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, atomic_writes

FACTS_KEY: Final = b"swav_tf"
COLUMNS: Final = ("name", "label", "class", "index")
ROW_GROUP: Final = 16_384  # rows of a .parquet in memory at once; 128 MiB of 2048 features


@dataclass(frozen=True)
class Rows:
    """Rows of a feature file.

    Attributes:
        features: (n, F) float32, possibly memory-mapped.
        labels: (n,) int64, -1 for none.
        index: (n,) int64, numbers of the images in their source.
        names: (n,) names of the images there.
    """

    features: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    names: Sequence[str]


@dataclass(frozen=True)
class FeatureFile:
    """An open feature file.

    Attributes:
        path: its place.
        rows: all rows.
        facts: `model` (see ModelIdentity), `view`, `source` (see ImageSet.facts), `class_names`; empty for files by
            other tools.
    """

    path: Path
    rows: Rows
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label; empty if unknown."""
        return list(self.facts.get("class_names", ()))

    def class_name(self, label: int) -> str:
        """Return the name of a class, its number if it has no name, nothing for -1."""
        return class_name(label, self.class_names)


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a class, its number if it has no name, nothing for -1."""
    if label < 0:
        return ""
    return names[label] if label < len(names) else str(label)


def companion(path: Path, ending: str) -> Path:
    """Return the path of a file that belongs to a feature file: its name and another ending."""
    return path.with_name(path.name + ending)


def check_format(path: Path) -> None:
    """Check the ending of a feature file.

    Raises:
        UsageError: it is not .npz, .npy or .parquet.
        ModuleNotFoundError: it is .parquet, and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise UsageError(f"A feature file must end in .npz, .npy or .parquet. Received: {path}.")
    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401 -- a missing package is reported before hours of work


def read_feature_file(path: Path | str) -> FeatureFile:
    """Open a feature file, or a .npz with `features` (and `labels`, `names`) or .npy of rows by another tool.

    Raises:
        UsageError: the file does not exist, or has another ending.
        DataError: it is damaged, empty, or contains something else.
    """
    path = Path(path)
    check_format(path)
    if not path.exists():
        raise UsageError(f"Feature file not found: {path}. Create one with `swav-tf features`.")
    try:
        rows, facts = _READERS[path.suffix](path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, csv.Error) as error:
        # NumPy's own message suggests to load the pickle, which would run whatever is in it.
        reason = "it contains no plain arrays" if "pickle" in str(error) else error
        raise DataError(f"{path} must be a feature file. It cannot be read: {reason}.") from error
    n = len(rows.features)
    if rows.features.ndim != 2 or rows.features.dtype.kind != "f" or 0 in rows.features.shape:
        raise DataError(
            f"{path} must contain features (N, F) of a floating-point type, N and F >= 1. "
            f"Received: {rows.features.dtype} {rows.features.shape}."
        )
    if not n == len(rows.labels) == len(rows.index) == len(rows.names):
        raise DataError(
            f"{path} must have a label and a name for each of its {n} rows. "
            f"Received: {len(rows.labels)} labels, {len(rows.names)} names."
        )
    return FeatureFile(path, rows, facts)


def write_feature_file(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    """Write a feature file; memory-mapped features are never read into memory at once.

    Args:
        path: its ending determines the format.
        rows: at least one.
        facts: see FeatureFile.

    Raises:
        DataError: the disk is full or refuses; an existing file stays.
    """
    check_format(path)
    _WRITERS[path.suffix](path, rows, facts)


# === .npz ===


def _read_npz(path: Path) -> tuple[Rows, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        if "features" not in file:
            raise ValueError(f"it has {', '.join(file.files) or 'nothing'}, but no `features`")
        features = file["features"]
        n = len(features)
        rows = Rows(
            features,
            file["labels"].astype(np.int64) if "labels" in file else np.full(n, -1),
            file["index"] if "index" in file else np.arange(n),
            file["names"].tolist() if "names" in file else [str(i) for i in range(n)],
        )
        return rows, json.loads(str(file["facts"])) if "facts" in file else {}


def _write_npz(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        np.savez(
            partial,
            features=rows.features,
            labels=rows.labels,
            index=rows.index,
            names=np.array(rows.names),
            facts=np.array(json.dumps(facts)),
        )


# === .npy ===


def _read_npy(path: Path) -> tuple[Rows, dict[str, Any]]:
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    table, facts = companion(path, ".csv"), companion(path, ".json")
    if not table.exists():  # an array by another tool
        n = len(features)
        return Rows(features, np.full(n, -1), np.arange(n), [str(i) for i in range(n)]), {}
    with table.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        names, labels, index = [], [], []
        for line in lines:
            names.append(line["name"])
            labels.append(int(line["label"]))
            index.append(int(line["index"]))
    rows = Rows(features, np.array(labels, np.int64), np.array(index, np.int64), names)
    return rows, json.loads(facts.read_text(encoding="utf-8"))


def _write_npy(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    classes = facts.get("class_names", ())
    with atomic_writes(companion(path, ".csv"), companion(path, ".json"), path) as (table, facts_file, array):
        np.save(array, rows.features)
        with table.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(COLUMNS)
            for name, label, number in zip(
                rows.names, rows.labels.tolist(), rows.index.tolist(), strict=True
            ):
                writer.writerow((name, label, class_name(label, classes), number))
        facts_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        path.unlink(missing_ok=True)  # so that old features never meet new labels


# === .parquet ===


def _read_parquet(path: Path) -> tuple[Rows, dict[str, Any]]:
    import pyarrow.parquet as pq

    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError("the folder has no part-*.parquet")
    files = [pq.ParquetFile(part) for part in parts]
    schema = files[0].schema_arrow
    if "features" not in schema.names:
        raise ValueError(f"it has the columns {', '.join(schema.names)}, but no `features`")
    n = sum(file.metadata.num_rows for file in files)
    width = schema.field("features").type.list_size
    features = np.empty((n, width), np.float32)
    labels, index, names = np.empty(n, np.int64), np.empty(n, np.int64), []
    done = 0
    for file in files:  # batch by batch: twice the features may not fit into memory
        for batch in file.iter_batches(columns=["features", "label", "index", "name"]):
            here = slice(done, done + batch.num_rows)
            features[here] = batch["features"].flatten().to_numpy().reshape(-1, width)
            labels[here], index[here] = batch["label"].to_numpy(), batch["index"].to_numpy()
            names += batch["name"].to_pylist()
            done += batch.num_rows
    return Rows(features, labels, index, names), json.loads((schema.metadata or {}).get(FACTS_KEY, b"{}"))


def _write_parquet(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes, width = facts.get("class_names", ()), rows.features.shape[1]
    fields = {"name": pa.string(), "label": pa.int64(), "class": pa.string(), "index": pa.int64()}
    fields["features"] = pa.list_(pa.float32(), width)
    schema = pa.schema(list(fields.items()), metadata={FACTS_KEY: json.dumps(facts).encode()})
    # Features do not repeat: a dictionary of them would only cost time.
    with (
        atomic_write(path) as partial,
        pq.ParquetWriter(partial, schema, use_dictionary=["label", "class"]) as writer,
    ):
        for start in range(0, len(rows.names), ROW_GROUP):
            here = slice(start, start + ROW_GROUP)
            columns = [
                pa.array(rows.names[here], pa.string()),
                pa.array(rows.labels[here]),
                pa.array([class_name(label, classes) for label in rows.labels[here].tolist()], pa.string()),
                pa.array(rows.index[here]),
                pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(rows.features[here])), width),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


_READERS: dict[str, Callable[[Path], tuple[Rows, dict[str, Any]]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}

_WRITERS: dict[str, Callable[[Path, Rows, dict[str, Any]], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
