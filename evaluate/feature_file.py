"""Feature files: what is in them, and reading them as .npz, .npy or .parquet. `feature_writer` writes them.

.npz      one file; read whole into memory. For up to some 100,000 images.
.npy      a plain array (N, F) that can be memory-mapped, so that k-NN needs no memory for it; beside it
          NAME.npy.csv (name, label, class and source index of each row) and NAME.npy.json (facts).
.parquet  a folder of part-NNNNN.parquet, a row an image, for data frames and databases; the facts are in the
          schema's metadata under `swav_tf`.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swav_tf.plumbing.errors import DataError, UsageError

FACTS_KEY = b"swav_tf"


@dataclass(frozen=True)
class Rows:
    """Some rows of a feature file.

    Attributes:
        features: (n, F) float32, memory-mapped where they come from .npy.
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
    """A feature file, open.

    Attributes:
        path: where it is.
        rows: all of it.
        facts: `model` (see ModelIdentity), `view`, `source` (see ImageSet.facts), `class_names`; only what is known:
            a file by someone else has none.
    """

    path: Path
    rows: Rows
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label; empty where they are not known."""
        return list(self.facts.get("class_names", ()))

    def class_name(self, label: int) -> str:
        """The name of a class, its number where it has none, nothing for -1."""
        return class_name(label, self.class_names)


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of a class, its number where it has none, nothing for -1."""
    if label < 0:
        return ""
    return names[label] if label < len(names) else str(label)


def beside(path: Path, ending: str) -> Path:
    """A file that belongs to a feature file: its name and another ending."""
    return path.with_name(path.name + ending)


def read_feature_file(path: Path | str) -> FeatureFile:
    """Opens a feature file of ours, or a .npz with `features` (and `labels`, `names`), or a .npy of rows.

    Raises:
        UsageError: there is no such file, or its name has another ending.
        DataError: it is damaged, empty, or holds something else.
    """
    path = Path(path)
    check_format(path)
    if not path.exists():
        raise UsageError(f"A feature file must be there: `swav-tf features` writes one. Received: {path}.")
    try:
        rows, facts = _READERS[path.suffix](path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, csv.Error) as error:
        # NumPy would tell how to load it all the same, running whatever is in it.
        reason = "it holds no plain arrays" if "pickle" in str(error) else error
        raise DataError(f"{path} must be a feature file; it cannot be read as one: {reason}.") from error
    n = len(rows.features)
    if rows.features.ndim != 2 or rows.features.dtype.kind != "f" or 0 in rows.features.shape:
        raise DataError(
            f"{path} must hold features (N, F) of a floating-point type, N and F >= 1. "
            f"Received: {rows.features.dtype} {rows.features.shape}."
        )
    if not n == len(rows.labels) == len(rows.index) == len(rows.names):
        raise DataError(
            f"{path} must have a label and a name for each of its {n} rows. "
            f"Received: {len(rows.labels)} labels, {len(rows.names)} names."
        )
    return FeatureFile(path, rows, facts)


def check_format(path: Path) -> None:
    """Refuses names with another ending than those of feature files.

    Raises:
        UsageError: it is none of .npz, .npy and .parquet.
        ModuleNotFoundError: .parquet, and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise UsageError(f"A feature file must end in .npz, .npy or .parquet. Received: {path}.")
    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401 -- where it is not installed, that is told before hours of work


def _read_npz(path: Path) -> tuple[Rows, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        if "features" not in file:
            raise ValueError(f"it has {', '.join(file.files) or 'nothing'}, but not `features`")
        features = file["features"]
        n = len(features)
        rows = Rows(
            features,
            file["labels"].astype(np.int64) if "labels" in file else np.full(n, -1),
            file["index"] if "index" in file else np.arange(n),
            file["names"].tolist() if "names" in file else [str(i) for i in range(n)],
        )
        return rows, json.loads(str(file["facts"])) if "facts" in file else {}


def _read_npy(path: Path) -> tuple[Rows, dict[str, Any]]:
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    table, facts = beside(path, ".csv"), beside(path, ".json")
    if not table.exists():  # somebody else's array
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


def _read_parquet(path: Path) -> tuple[Rows, dict[str, Any]]:
    import pyarrow.parquet as pq

    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError("the folder has no part-*.parquet")
    files = [pq.ParquetFile(part) for part in parts]
    schema = files[0].schema_arrow
    if "features" not in schema.names:
        raise ValueError(f"it has the columns {', '.join(schema.names)}, but not `features`")
    n = sum(file.metadata.num_rows for file in files)
    width = schema.field("features").type.list_size
    features = np.empty((n, width), np.float32)
    labels, index, names = np.empty(n, np.int64), np.empty(n, np.int64), []
    done = 0
    for file in files:  # a part at a time: twice the features would not fit where once does
        for batch in file.iter_batches(columns=["features", "label", "index", "name"]):
            here = slice(done, done + batch.num_rows)
            features[here] = batch["features"].flatten().to_numpy().reshape(-1, width)
            labels[here], index[here] = batch["label"].to_numpy(), batch["index"].to_numpy()
            names += batch["name"].to_pylist()
            done += batch.num_rows
    return Rows(features, labels, index, names), json.loads((schema.metadata or {}).get(FACTS_KEY, b"{}"))


_READERS: dict[str, Callable[[Path], tuple[Rows, dict[str, Any]]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}
