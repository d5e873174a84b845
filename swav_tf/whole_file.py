"""Files that are whole under their names, or not there."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swav_tf.errors import DataError

# File systems that cannot bring a folder to disk, and folders that may be written and not read, say one of these.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name to write a file under, with the same ending; the file gets its own when all went well.

    A link stays one: the file that it leads to is written.

    What was there before stays as it is until then. Do nothing inside but write: what the system refuses
    there is told as a file that could not be written.

    Raises:
        DataError: the disk is full or refuses, or something that is no file has the name.
    """
    with whole_files(path) as (partial,):
        yield partial


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Likewise for files that belong together: all are on the disk before the first gets its name.

    Args:
        paths: in the order in which they get them.

    Raises:
        DataError: the disk is full or refuses, or something that is no file has a name.
    """
    paths = tuple(path.resolve() for path in paths)
    # Not the process's number: in containers all have the same, and their disk may be one.
    partials = [path.with_name(f".part-{os.urandom(4).hex()}-{path.name}") for path in paths]
    try:
        for path in paths:
            if path.exists() and not path.is_file():  # a device would be replaced, for everybody
                raise DataError(f"{path} must be a file or a new name, and is neither. Give another name.")
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partials
        for partial in partials:
            bring_to_disk(partial)
        for partial, path in zip(partials, paths, strict=True):
            os.replace(partial, path)
        for folder in {path.parent for path in paths}:
            bring_to_disk(folder)
    except OSError as error:
        raise DataError(
            f"{paths[0]} could not be written: {error.strerror or error}. Make room, or give another place."
        ) from error
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):  # a read-only disk does not even let go of what is not there
                partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file that no other process writes now."""
    for left in path.parent.glob(f".part-????????-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


def bring_to_disk(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk: a power cut cannot take them.

    Raises:
        OSError: the disk is full or refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (error.errno in _NOT_FOR_FOLDERS and path.is_dir()):
            raise
