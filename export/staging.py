"""Fill a folder completely or leave it as it was."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from swav_tf.plumbing.errors import SwavError, UsageError
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
        UsageError: another process exports into `target`.
        ExportError: the disk is full or read-only; `target` is as it was.
    """
    existed = target.is_dir()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (
            _locked(target),
            tempfile.TemporaryDirectory(prefix=PREFIX, dir=target, ignore_cleanup_errors=True) as name,
        ):
            yield Path(name)
            _publish(Path(name), target)
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
def _locked(target: Path) -> Iterator[None]:
    """Lock a folder for this process, and remove what killed exports left in it.

    A file system without locks is not an error: leftovers then stay.
    """
    descriptor = os.open(target, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in target.glob(f"{PREFIX}*/"):
            shutil.rmtree(leftover, ignore_errors=True)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"{target} is in use: another process is writing it. Wait until it ends, or choose another folder."
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)
