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

PREFIX: Final = ".part-"
# A graph is renamed after the file of its weights, and what announces a model to a server after everything else.
LAST: Final = (".onnx", ".pbtxt")


class ExportError(SwavError):
    """Report a graph that cannot be exported or does not compute what Keras computes."""


@contextmanager
def filled_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder; its files move to the same places in `target` once all of them are on the disk.

    Files of the same names in `target` are replaced, others stay.

    Raises:
        ExportError: the disk is full or read-only; `target` is as it was.
    """
    existed = target.is_dir()
    try:
        with staging_folder(target) as folder:
            yield folder
            _publish(folder, target)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error}. Free some space or choose another folder."
        ) from error
    finally:
        if not existed and target.is_dir() and not any(target.iterdir()):
            target.rmdir()


def _publish(folder: Path, target: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        sync_to_disk(path)
    for path in sorted(files, key=lambda path: (path.suffix in LAST and LAST.index(path.suffix) + 1, path)):
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
        if path.suffix == ".onnx" and path.with_name(f"{path.name}.data") not in files:
            place.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a larger graph before


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder in `target` that is removed at the end; remove those that killed exports left.

    A living process holds a lock on its folder. On a file system without locks, leftovers stay.
    """
    target.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        with _locked(target, fcntl.LOCK_EX):  # a folder is no leftover between its creation and its lock
            for leftover in target.glob(f"{PREFIX}*/"):
                with _locked(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB) as unused:
                    if unused:
                        shutil.rmtree(leftover, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target))
            lock.enter_context(_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[bool]:
    """Lock a folder; yield False if another process holds it or the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, operation)
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)
