"""What an interrupted extraction leaves for the next one: settings.json and a shard for each range of images."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.feature_file import Rows
from evaluate.images import ViewedImage
from swav_tf.errors import DataError, UsageError
from swav_tf.lock import take_lock
from swav_tf.whole_file import whole_file


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
    """`whole_file`, but another place is no remedy: what is done already lies in this one."""
    try:
        with whole_file(path) as partial:
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
