"""Feature files: .npz, .npy and .parquet; and folders of parts, which are read like files.

.npz      one file, read into memory. For up to about 100,000 images.
.npy      a plain array (N, F) that can be memory-mapped, so that k-NN needs no memory for it; next to it
          NAME.npy.csv (name, label, class and source index of each row) and NAME.npy.json (facts).
.parquet  one file, a row per image, for data frames and databases; the facts are in the schema's metadata under
          `swav_tf`. Folders of part-NNNNN.parquet, as older versions wrote, can be read.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from evaluate.feature_parts import FACTS_KEY, has_parts, open_parts
from swav_tf.knn import Neighbors, find_neighbors
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, atomic_writes

ROW_GROUP: Final = 16_384  # rows of a .parquet in memory at once; 128 MiB of 2048 features


@dataclass(frozen=True)
class FeatureFile:
    """Features of N images.

    `facts` has `model` (see ModelIdentity), `view`, `source` (see ImageSet.facts) and `class_names`; empty for files by
    other tools.
    """

    path: Path
    features: np.ndarray  # (N, F) float32, possibly memory-mapped, or the `Rows` of parts
    labels: np.ndarray  # (N,) int64, -1 for none
    index: np.ndarray  # (N,) int64, numbers of the images in their source
    names: Sequence[str]  # (N,) names of the images there
    facts: dict[str, Any] = field(default_factory=dict)
    normalized: bool = False  # whether all features have length 1

    def __len__(self) -> int:
        return len(self.features)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label; empty if unknown."""
        return self.facts.get("class_names", [])  # type: ignore[no-any-return]

    @property
    def width(self) -> int:
        """Number of features of an image, F."""
        return int(self.features.shape[1])

    def class_name(self, label: int) -> str:
        """Return the name of a class; see the function `class_name`."""
        return class_name(label, self.class_names)

    def entry(self, row: int) -> dict[str, Any]:
        """Return `name`, `label`, `class` and `index` (number in the source) of a row."""
        label, index = int(self.labels[row]), int(self.index[row])
        return {"name": self.names[row], "label": label, "class": self.class_name(label), "index": index}

    def neighbors(
        self, queries: np.ndarray, *, k: int, on_progress: Callable[[float], None] = lambda _: None
    ) -> Neighbors:
        """Find the k features of highest cosine with each query (M, F); see `find_neighbors`."""
        try:
            return find_neighbors(
                self.features, queries, k=k, normalized=self.normalized, on_progress=on_progress
            )
        except ValueError as error:  # callers check shapes and k, but not the values
            raise DataError(
                f"{self.path} or the queries contain invalid features: {error} Compute them again."
            ) from error


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a class, its number if it has no name, nothing for -1."""
    if label < 0:
        return ""
    return names[label] if label < len(names) else str(label)


def companion(path: Path, ending: str) -> Path:
    """Return the path of a file that belongs to a feature file: its name and another ending."""
    return path.with_name(path.name + ending)


def check_format(path: Path) -> None:
    """Check the ending of a feature file, and that pyarrow is installed if it is .parquet."""
    if path.suffix not in FORMATS:
        raise UsageError(f"A feature file must end in .npz, .npy or .parquet. Received: {path}.")
    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401 -- a missing package is reported before hours of work


def read_feature_file(path: Path | str) -> FeatureFile:
    """Open a feature file or a folder of parts, or of another tool a .npz with `features` or a .npy of rows.

    Such a .npz may have `labels` and `names`.

    Raises:
        UsageError: the file does not exist, or has another ending.
        DataError: it is damaged, empty, or contains something else.
    """
    path = Path(path)
    if has_parts(path):
        parts = open_parts(path)
        labels, index = parts.table.numbers("label"), parts.table.numbers("index")
        return FeatureFile(path, cast(np.ndarray, parts.features), labels, index, parts.table, parts.facts)
    check_format(path)
    if not path.exists():
        raise UsageError(f"Feature file not found: {path}. Create one with `swav-tf features`.")
    try:
        file = FORMATS[path.suffix][0](path)
    except (OSError, EOFError, ValueError, KeyError, StopIteration, zipfile.BadZipFile, csv.Error) as error:
        # NumPy's own message suggests loading the pickle, which would run any code in it.
        reason = "it contains no plain arrays" if "pickle" in str(error) else error
        raise DataError(f"{path} must be a feature file. It cannot be read: {reason}.") from error
    features = file.features
    if features.ndim != 2 or features.dtype.kind != "f" or 0 in features.shape:
        raise DataError(
            f"{path} must contain features (N, F) of a floating-point type, N and F >= 1. "
            f"Received: {features.dtype} {features.shape}."
        )
    if not (len(file),) == file.labels.shape == file.index.shape == (len(file.names),):
        raise DataError(
            f"{path} must have a label and a name for each of its {len(file)} rows. "
            f"Received: labels {file.labels.shape}, {len(file.names)} names."
        )
    return file


def write_feature_file(file: FeatureFile) -> None:
    """Write a feature file in the format of its path; memory-mapped features are never in memory at once."""
    check_format(file.path)
    FORMATS[file.path.suffix][1](file)


def _classes_of(labels: np.ndarray) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Return labels as numbers, -1 for none, and the fact `class_names` if they are names."""
    if labels.dtype.kind == "O":  # text of Parquet, None where there is none
        labels = np.array(["" if label is None else label for label in labels.tolist()], str)
    if labels.dtype.kind in "SU":
        texts = np.char.strip(labels.astype(str))
        names = np.unique(texts[texts != ""])
        # Not by int(), for which `1_11` and `11_1` are one number.
        if "" not in texts and all(re.fullmatch("-1|[0-9]{1,18}", name) for name in names.tolist()):
            return texts.astype(np.int64), {}
        return np.where(texts == "", -1, np.searchsorted(names, texts)), {"class_names": names.tolist()}
    if labels.dtype.kind == "f":  # integers of Parquet, NaN where there is none
        labels = np.where(np.isnan(labels), -1, labels)
    numbers = labels.astype(np.int64) if labels.dtype.kind in "biuf" else None
    if numbers is None or (numbers != labels).any():
        raise ValueError(f"labels must be whole numbers or text, one for each image; they are {labels.dtype}")
    return numbers, {}


def _facts_of(text: str | bytes, classes: dict[str, list[str]]) -> dict[str, Any]:
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError(f"its facts must be an object of JSON; they are {text!r:.50}")
    return facts | classes


def _read_npz(path: Path) -> FeatureFile:
    with np.load(path, allow_pickle=False) as file:
        if "features" not in file:
            raise ValueError(f"it has {', '.join(file.files) or 'nothing'}, but no `features`")
        features = file["features"]
        n = len(features)
        labels, classes = _classes_of(file["labels"] if "labels" in file else np.full(n, -1))
        return FeatureFile(
            path,
            features,
            labels,
            file["index"] if "index" in file else np.arange(n),
            file["names"].tolist() if "names" in file else [str(i) for i in range(n)],
            _facts_of(str(file["facts"]) if "facts" in file else "{}", classes),
        )


def _write_npz(file: FeatureFile) -> None:
    with atomic_write(file.path) as partial:
        names, facts = np.array(file.names), np.array(json.dumps(file.facts))
        np.savez(
            partial, features=file.features, labels=file.labels, index=file.index, names=names, facts=facts
        )


def _read_npy(path: Path) -> FeatureFile:
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    table = companion(path, ".csv")
    if not table.exists():  # an array from another tool
        n = len(features)
        return FeatureFile(path, features, np.full(n, -1), np.arange(n), [str(i) for i in range(n)])
    with table.open(encoding="utf-8-sig", newline="") as text:
        rows = [(row["name"], row["label"], int(row["index"])) for row in csv.DictReader(text)]
    names, texts, index = zip(*rows, strict=True) if rows else ((), (), ())
    labels, classes = _classes_of(np.array(texts, str))
    facts = _facts_of(companion(path, ".json").read_text(encoding="utf-8-sig"), classes)
    return FeatureFile(path, features, labels, np.array(index, np.int64), names, facts)


def _write_npy(file: FeatureFile) -> None:
    path = file.path
    with atomic_writes(companion(path, ".csv"), companion(path, ".json"), path) as (table, facts, array):
        _save(array, file.features)
        classes = map(file.class_name, file.labels.tolist())
        rows = zip(file.names, file.labels.tolist(), classes, file.index.tolist(), strict=True)
        with table.open("w", encoding="utf-8", newline="") as text:
            csv.writer(text).writerows([("name", "label", "class", "index"), *rows])
        facts.write_text(json.dumps(file.facts, indent=1) + "\n", encoding="utf-8")
        path.unlink(missing_ok=True)  # so that old features never meet new labels


def _save(path: Path, features: np.ndarray) -> None:
    """Do what `np.save` does, block by block: those of many parts may not fit into memory."""
    array = np.lib.format.open_memmap(path, "w+", features.dtype, features.shape)
    for start in range(0, len(array), ROW_GROUP):
        array[start : start + ROW_GROUP] = features[start : start + ROW_GROUP]
    array.flush()


def _read_parquet(path: Path) -> FeatureFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError("the folder has no part-*.parquet")
    files = [pq.ParquetFile(part) for part in parts]
    schema = files[0].schema_arrow
    if "features" not in schema.names:
        raise ValueError(f"it has the columns {', '.join(schema.names)}, but no `features`")
    n, kind = sum(file.metadata.num_rows for file in files), schema.field("features").type
    if not pa.types.is_fixed_size_list(kind):
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise ValueError(f"`features` must be a column of lists of numbers; it is one of {kind}")
        # Other tools write lists of any length: all must be as the first.
        first = next(files[0].iter_batches(1, columns=["features"]))["features"][0]
        kind = pa.list_(pa.float32(), len(first))
    width = kind.list_size
    features = np.empty((n, width), np.float32)
    labels, index, names, done = [], np.empty(n, np.int64), [], 0
    for file in files:  # batch by batch: twice the features may not fit into memory
        for batch in file.iter_batches(columns=["features", "label", "index", "name"]):
            here = slice(done, done + batch.num_rows)
            features[here] = batch["features"].cast(kind).flatten().to_numpy().reshape(-1, width)
            labels.append(batch["label"].to_numpy(zero_copy_only=False))
            index[here] = batch["index"].to_numpy()
            names += batch["name"].to_pylist()
            done += batch.num_rows
    numbers, classes = _classes_of(np.concatenate(labels))
    facts = _facts_of((schema.metadata or {}).get(FACTS_KEY, b"{}"), classes)
    return FeatureFile(path, features, numbers, index, names, facts)


def _write_parquet(file: FeatureFile) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = file.features.shape[1]
    columns = {"name": pa.string(), "label": pa.int64(), "class": pa.string(), "index": pa.int64()}
    columns["features"] = pa.list_(pa.float32(), width)
    schema = pa.schema(list(columns.items()), metadata={FACTS_KEY: json.dumps(file.facts).encode()})
    coded = ["label", "class"]  # features do not repeat: a dictionary of them would only cost time
    with atomic_write(file.path) as partial, pq.ParquetWriter(partial, schema, use_dictionary=coded) as out:
        for start in range(0, len(file), ROW_GROUP):
            here = slice(start, start + ROW_GROUP)
            labels = file.labels[here]
            values = [
                pa.array(file.names[here], pa.string()),
                pa.array(labels),
                pa.array([file.class_name(label) for label in labels.tolist()], pa.string()),
                pa.array(file.index[here]),
                pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(file.features[here])), width),
            ]
            out.write_table(pa.Table.from_arrays(values, schema=schema))


FORMATS: dict[str, tuple[Callable[[Path], FeatureFile], Callable[[FeatureFile], None]]] = {
    ".npz": (_read_npz, _write_npz),
    ".npy": (_read_npy, _write_npy),
    ".parquet": (_read_parquet, _write_parquet),
}
