"""Files that are complete under their names or absent, locks, and checksums."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from swav_tf.plumbing.errors import DataError, UsageError

# File systems that cannot sync a folder, and folders that may be written but not read, report one of these.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same extension; it replaces `path` once the block succeeds.

    Until then an existing file stays as it is. A symbolic link is kept and its target written. Only write inside
    the block: an OSError there is reported as a file that could not be written.

    Raises:
        DataError: the disk is full or read-only, or `path` is not a regular file.
    """
    with atomic_writes(path) as (partial,):
        yield partial


@contextmanager
def atomic_writes(*paths: Path) -> Iterator[list[Path]]:
    """Do the same for files that belong together: all are on disk before the first is renamed, in this order.

    Raises:
        DataError: the disk is full or read-only, or a path is not a regular file.
    """
    paths = tuple(path.resolve() for path in paths)
    # Random, not the process ID: containers on a shared disk may have equal process IDs.
    partials = [path.with_name(f".part-{os.urandom(4).hex()}-{path.name}") for path in paths]
    try:
        for path in paths:
            if path.exists() and not path.is_file():  # renaming over a device would replace it
                raise DataError(f"{path} exists and is not a regular file. Choose another name.")
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partials
        for partial in partials:
            sync_to_disk(partial)
        for partial, path in zip(partials, paths, strict=True):
            os.replace(partial, path)
        for folder in {path.parent for path in paths}:
            sync_to_disk(folder)
    except OSError as error:
        raise DataError(
            f"{paths[0]} could not be written: {error.strerror or error}. Free some space or choose another place."
        ) from error
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):  # a read-only disk refuses even to remove a missing file
                partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`. No other process may be writing it."""
    for left in path.parent.glob(f".part-????????-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, survives a power cut.

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


def take_lock(file: IO[Any], folder: Path) -> bool:
    """Lock a file that is open for writing until it is closed or the process dies; False if another process holds it.

    Args:
        file: the lock file.
        folder: what the lock protects, for the error message.

    Raises:
        UsageError: the file system does not support locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the only error that means: held by another process
        return False
    except OSError as error:
        raise UsageError(
            f"{folder} must be on a file system with locks, which keep two processes from writing it at once. "
            f"flock failed: {error.strerror or error}. Mount it with locks (Lustre: option flock; NFS: with its lock "
            "service, or option local_lock=flock if only one machine writes there), or choose another file system."
        ) from error
    return True


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
