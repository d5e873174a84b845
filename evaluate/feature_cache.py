"""Features on disk while they are computed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from evaluate.feature_file import FACTS_KEY, Rows, beside, check_format, class_name
from evaluate.images import ViewedImage
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, sync_to_disk, take_lock


@contextmanager
def locked(folder: Path, output: Path) -> Iterator[None]:
    """The shards are this process's alone; the system lets go of the lock when it dies.

    Args:
        folder: of the shards; made where it is not there.
        output: the feature file that they are for.

    Raises:
        UsageError: another process has them, or their file system has no locks.
        DataError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error}. Give another -o.") from error
    with lock:
        if not take_lock(lock, folder):
            raise UsageError(
                f"Only one process may write {output}, and another does now. Wait for it, or give another -o."
            )
        yield


def keep_settings(folder: Path, settings: dict[str, Any], output: Path) -> None:
    """Writes settings.json, or holds it against the one that is there.

    Raises:
        UsageError: that one is of another model, images or settings.
        DataError: that one is damaged, or the disk refuses.
    """
    path = folder / "settings.json"
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged: {error}. Give --fresh to begin {output} anew, or another -o."
            ) from error
        refuse_differences(before, settings, f"{output} was begun with other settings")
    else:
        with _kept(path) as partial:
            partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def refuse_differences(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuses to go on with what was made otherwise.

    Args:
        before: the settings that it was made with.
        now: those that are asked for.
        what: the beginning of the message.

    Raises:
        UsageError: they differ; the message lists how.
    """
    differences = [
        f"  {key}: was {old!r}, now {new!r}"
        for key, old, new in _pairs(before, now)
        if old != new and key != "model.path"  # a run folder may move
    ]
    if differences:
        raise UsageError(
            f"{what}:\n"
            + "\n".join(differences)
            + "\nGive the old values, another -o, or --fresh to begin anew."
        )


def _pairs(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _pairs(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    else:
        yield key, before, now


def write_shard(
    path: Path, seen: Sequence[ViewedImage], outputs: Sequence[np.ndarray], width: int, bad: dict[str, str]
) -> None:
    """Writes one shard, whole or not at all.

    Args:
        path: of the shard.
        seen: the images that could be read, in order.
        outputs: their features, batch by batch.
        width: features of an image, F.
        bad: name and reason of each image that could not be read.

    Raises:
        DataError: the disk refuses.
    """
    with _kept(path) as partial:
        np.savez(
            partial,
            features=np.concatenate(outputs) if outputs else np.empty((0, width), np.float32),
            labels=np.array([image.label for image in seen], np.int64),
            index=np.array([image.index for image in seen], np.int64),
            names=np.array([image.name for image in seen], str),
            bad_names=np.array(list(bad.keys()), str),
            bad_reasons=np.array(list(bad.values()), str),
        )


@contextmanager
def _kept(path: Path) -> Iterator[Path]:
    """`atomic_write`, but another place is no remedy: what is done already lies in this one."""
    try:
        with atomic_write(path) as partial:
            yield partial
    except DataError as error:
        raise DataError(
            f"{path} could not be written: {error.__cause__}. "
            "Make room and give the same command again: it goes on."
        ) from error


def read_shard(path: Path) -> Rows:
    """The images of a shard that could be read.

    Raises:
        DataError: the shard is damaged.
    """
    with _open_shard(path) as file:
        return Rows(file["features"], file["labels"], file["index"], file["names"].tolist())


def unreadable_of(path: Path) -> dict[str, str]:
    """Name and reason of the images of a shard that could not be read.

    Raises:
        DataError: the shard is damaged.
    """
    with _open_shard(path) as file:
        return dict(zip(file["bad_names"].tolist(), file["bad_reasons"].tolist(), strict=True))


@contextmanager
def _open_shard(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged: {error}. Remove it and give the same command again: its images are done anew."
        ) from error


def remove_shards(folder: Path) -> None:
    """Begins anew: removes settings and shards, but not the lock that is held."""
    for path in folder.iterdir():
        if path.name != ".lock":
            path.unlink()


COLUMNS = ("name", "label", "class", "index")
_BESIDE = (".csv", ".json")  # what belongs to a .npy

Parts = Callable[[], Iterable[Rows]]  # the same rows at every call


def write_feature_file(path: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """Writes a feature file from its parts, one of them in memory at a time; whole or not at all.

    Args:
        path: its ending says the format.
        parts: called as often as needed, gives the rows in order, not empty.
        facts: see FeatureFile.

    Raises:
        DataError: the disk is full or refuses; what was there before is untouched.
    """
    check_format(path)
    partial = path.with_name(f".{path.name}.part")
    for ending in ("", *_BESIDE):
        _remove(beside(partial, ending))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[path.suffix](partial, parts, facts)
        _take_place(partial, path)
    except OSError as error:
        for ending in ("", *_BESIDE):
            _remove(beside(partial, ending))
        raise DataError(f"{path} could not be written: {error}. Make room, or give another -o.") from error


def _take_place(partial: Path, path: Path) -> None:
    """Puts what is whole where it belongs; at no moment are parts of two files under the same name."""
    parts = [beside(partial, ending) for ending in _BESIDE if beside(partial, ending).exists()]
    for written in (partial, *parts):
        for file in written.iterdir() if written.is_dir() else (written,):
            sync_to_disk(file)
    before = path.with_name(f".{path.name}.before")
    _remove(before)
    if path.is_dir() or (parts and path.exists()):
        os.replace(path, before)
    for part in parts:
        os.replace(part, beside(path, part.suffix))
    os.replace(partial, path)
    _remove(before)


def _write_npz(partial: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """An uncompressed .npz; the features are streamed, for np.savez would want them all in memory."""
    labels, index, names = _columns(parts())
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            _write_array(file, len(labels), parts())
        small = {
            "labels": labels,
            "index": index,
            "names": np.array(names),
            "facts": np.array(json.dumps(facts)),
        }
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npy(partial: Path, parts: Parts, facts: dict[str, Any]) -> None:
    labels, index, names = _columns(parts())
    with partial.open("wb") as file:
        _write_array(file, len(labels), parts())
    with beside(partial, ".csv").open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        classes = facts.get("class_names", ())
        for name, label, number in zip(names, labels.tolist(), index.tolist(), strict=True):
            writer.writerow((name, label, class_name(label, classes), number))
    beside(partial, ".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_parquet(partial: Path, parts: Parts, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial.mkdir()
    classes = facts.get("class_names", ())
    for number, rows in enumerate(parts()):
        width = rows.features.shape[1]
        schema = pa.schema(
            [
                ("name", pa.string()),
                ("label", pa.int64()),
                ("class", pa.string()),
                ("index", pa.int64()),
                ("features", pa.list_(pa.float32(), width)),
            ],
            metadata={FACTS_KEY: json.dumps(facts).encode()},
        )
        columns = [
            pa.array(rows.names, pa.string()),
            pa.array(rows.labels),
            pa.array([class_name(label, classes) for label in rows.labels.tolist()], pa.string()),
            pa.array(rows.index),
            pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(rows.features)), width),
        ]
        # Features do not repeat: a dictionary of them only costs time.
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            partial / f"part-{number:05d}.parquet",
            use_dictionary=["label", "class"],
        )


_WRITERS: dict[str, Callable[[Path, Parts, dict[str, Any]], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}


def _columns(parts: Iterable[Rows]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    labels: list[np.ndarray] = []
    index: list[np.ndarray] = []
    names: list[str] = []
    for rows in parts:
        labels.append(rows.labels)
        index.append(rows.index)
        names += rows.names
    return np.concatenate(labels), np.concatenate(index), names


def _write_array(file: IO[bytes], count: int, parts: Iterable[Rows]) -> None:
    """The features of all parts as one .npy, a part at a time."""
    for number, features in enumerate(_features(parts)):
        if number == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, features.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(features.tobytes())


def _features(parts: Iterable[Rows]) -> Iterator[np.ndarray]:
    for rows in parts:
        yield np.asarray(rows.features, "<f4")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
