"""Fill a folder completely or leave it as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from swav_tf.plumbing.errors import SwavError
from swav_tf.plumbing.files import sync_to_disk


class ExportError(SwavError):
    """The graph cannot be exported, or does not compute what Keras computes."""


PREFIX: Final = ".part-"
# A graph comes after the file of its weights, and what tells a server of a model after all else.
LAST: Final = (".onnx", ".pbtxt")


@contextmanager
def filled_folder(target: Path, *, option: str) -> Iterator[Path]:
    """A new folder whose files appear in `target`, in the same places, when all of them are on the disk.

    Args:
        target: made if it is not there; files of the same names in it are replaced, others stay.
        option: of the command line that names it, for messages.

    Raises:
        ExportError: the disk is full or refuses.
    """
    was_there = target.is_dir()
    made = contextlib.ExitStack()
    try:
        folder = made.enter_context(staging_folder(target))
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}. Give another {option}.") from error
    try:
        yield folder
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files:
            sync_to_disk(path)
        for path in sorted(files, key=_turn):
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
            if path.suffix == ".onnx" and path.with_name(f"{path.name}.data") not in files:
                # Of a larger graph that was there before.
                place.with_name(f"{path.name}.data").unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error}. Make room, or give another {option}."
        ) from error
    finally:
        made.close()
        if not was_there and not any(target.iterdir()):
            target.rmdir()


def _turn(path: Path) -> int:
    return LAST.index(path.suffix) + 1 if path.suffix in LAST else 0


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder in `target`, gone at the end; those that killed exports left there go at the start.

    A living process holds a lock on its own, which the system lets go of when it dies. Where a file system
    has no such locks, what others left stays.

    Raises:
        OSError: it cannot be made.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target, wait=True):  # nobody takes a folder for left over between its making and its lock
        for leftover in target.glob(f"{PREFIX}*/"):
            with _locked(leftover, wait=False) as ours:
                if ours:
                    shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder, wait=False))
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a folder; False where somebody else does, or nobody can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)
