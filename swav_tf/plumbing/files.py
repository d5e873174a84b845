"""Files that are complete under their names or absent, locks, and checksums."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swav_tf.plumbing.errors import DataError, SwavError, UsageError

# File systems that cannot sync a folder, and folders that may be written but not read, report one of these.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


def read_lines(path: Path | str, what: str, refusal: type[SwavError] = DataError) -> list[str]:
    """Return the lines of a hand-written text file, stripped; empty lines are skipped.

    Editors of other systems end lines by CRLF, put a byte-order mark first, or write UTF-16 after one.

    Raises:
        refusal: the file cannot be read as text; `what` describes what it should be.
    """
    try:
        lines = decode_text(Path(path).read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"{what} must be a readable text file. Received: {path}: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def decode_text(data: bytes) -> str:
    """Return a text in UTF-8, with or without a byte-order mark, or in UTF-16 with one."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def check_writable(path: Path, refusal: type[SwavError] = DataError) -> None:
    """Check that a file or folder can be written, before the work of hours; nothing is left behind.

    Raises:
        refusal: the nearest existing folder above it takes no file.
    """
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        # Permissions are not enough: disks are read-only, and the superuser may write anywhere else.
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.is_file():
            path.open("ab").close()
    except OSError as error:
        raise refusal(
            f"{path} must be writable. Received: {folder} ({error.strerror or error}). Get write permission, free some "
            "space, or choose another location."
        ) from error


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
    """Do the same for files that belong together: all are on disk before the first is renamed, in this order."""
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
            f"{paths[0]} could not be written: {error.strerror or error}. Free some space or choose another location."
        ) from error
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):  # a read-only disk refuses even to remove a missing file
                partial.unlink(missing_ok=True)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV, completely or not at all."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`. No other process may be writing it."""
    for left in path.parent.glob(f".part-????????-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, survives a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (error.errno in _NOT_FOR_FOLDERS and path.is_dir()):
            raise


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder and lock it for this process; the system releases the lock when the process dies.

    Raises:
        UsageError: another process holds the lock, the folder is not writable, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UsageError(f"{folder} must be a writable folder. {error}. Choose another folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the only error that means: held by another process
            lock.seek(0)
            raise UsageError(
                f"{folder} is in use: process {lock.read().strip() or 'unknown'} is writing it. Wait until it ends, "
                "stop it, or choose another folder."
            ) from None
        except OSError as error:
            raise UsageError(
                f"{folder} must be on a file system with locks, which keep two processes from writing it at once. "
                f"flock failed: {error.strerror or error}. Mount it with locks (Lustre: option flock; NFS: with its "
                "lock service, or option local_lock=flock if only one machine writes there), or choose another file "
                "system."
            ) from error
        with contextlib.suppress(OSError):  # the process ID is only for the message above
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
