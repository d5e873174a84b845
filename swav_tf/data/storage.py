"""Files by path: local ones through `os`; `gs://`, `s3://`, `zip://`, `memory://` and other schemes through fsspec."""

from __future__ import annotations

import errno
import glob
import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from swav_tf.data.leftovers import is_system
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import native
from swav_tf.plumbing.parallel import map_ahead

# What fsspec's file systems call the version or the time of a change of a file.
_CHANGE_KEYS: Final = (
    "ETag", "etag", "LastModified", "last_modified", "updated", "modified", "mtime", "created", "date_time",
)  # fmt: skip
_AT_ONCE: Final = 1000  # files per task


class FileFacts(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds since 1970, 0 where it is not recorded."""

    size: int
    changed_ns: int


def is_remote(path: str | Path) -> bool:
    """Return whether a path has a scheme, so that fsspec reads it."""
    return "://" in str(path)


def local_or_remote(path: str | Path) -> str:
    """Return the path as text with `~` expanded; for a zip file the path of the folder in it."""
    if is_remote(path):
        return str(path)
    local = os.path.expanduser(path)
    return _folder_in_zip(local) if local.lower().endswith(".zip") and os.path.isfile(local) else local


def _folder_in_zip(archive: str) -> str:
    """Return the path of the folder that was zipped, or of the top if the archive contains several entries."""
    root = f"zip://::{os.path.abspath(archive)}"
    try:
        names = [name for name in names_in(root) if not (name.startswith(".") or is_system(name))]
        inside = join(root, names[0]) if len(names) == 1 else root
        return inside if is_folder(inside) else root
    except OSError as error:
        raise DataError(f"{archive} must be a zip file. {error}. Copy it again.") from error


def is_folder(path: str) -> bool:
    """Return whether a folder exists at the path."""
    return _type(path) == "directory" if is_remote(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Return whether a file or folder exists at the path."""
    return _type(path) is not None if is_remote(path) else os.path.exists(path)


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder, also in one of an archive: `zip://folder::/data/images.zip`.

    As in `os.path.join`, a name that is a complete path stays as it is.
    """
    if name.startswith("/") or is_remote(name):
        return name
    if not is_remote(folder):
        return f"{folder.rstrip('/')}/{name}"
    inner, chain, archive = folder.partition("::")
    return f"{inner}{'' if inner.endswith('/') else '/'}{name}{chain}{archive}"


def folder_of(path: str) -> str:
    """Return the path of the folder that a file is in, also in an archive."""
    if not is_remote(path):
        return os.path.dirname(path) or "."
    inner, chain, archive = path.partition("::")
    folder = inner.rpartition("/")[0]
    return f"{folder}{'/' if folder.endswith(':/') else ''}{chain}{archive}"


def name_of(path: str) -> str:
    """Return the last part of a path, without the archive it is in."""
    return (path.partition("::")[0] if is_remote(path) else path).rpartition("/")[2]


def names_in(folder: str) -> list[str]:
    """Return the sorted names of the files and folders in a folder."""
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _remote(folder) as (files, inner):
        return sorted(path.rstrip("/").rpartition("/")[2] for path in files.ls(inner, detail=False))


def matching(pattern: str) -> list[str]:
    """Return the sorted paths that match a pattern with `*`, `?` and `[...]`."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    with _remote(pattern) as (files, inner):
        text, chain, archive = pattern.partition("::")
        prefix = text.removesuffix(inner.lstrip("/"))  # scheme and host, which fsspec leaves out
        return sorted(f"{prefix}{path.lstrip('/')}{chain}{archive}" for path in files.glob(inner))


def remote_files_below(folder: str) -> dict[str, int | None]:
    """Return the size of each file below a remote folder, None if unknown, by the path relative to the folder.

    A folder's files come before its folders.
    """
    with _remote(folder) as (files, inner):
        found = files.find(inner, detail=True)
        files.invalidate_cache()  # the client library would keep a dictionary for each file
    sizes = {path[len(inner.rstrip("/")) :].lstrip("/"): entry.get("size") for path, entry in found.items()}
    return {name: sizes[name] for name in sorted(sizes, key=visiting_order)}


def walk_remote(folder: str) -> Iterator[str]:
    """Yield the paths of the files below a remote folder, relative to it; folders are listed as they are reached."""
    with _remote(folder) as (files, inner):
        for path, _, names in files.walk(inner):
            below = path.strip("/").removeprefix(inner.strip("/")).strip("/")
            yield from (f"{below}/{name}".lstrip("/") for name in names)


def visiting_order(name: str) -> str:
    """Return the key by which paths are in the order of a walk: a folder's files, then its folders, by name."""
    *folders, file = name.split("/")
    return "".join(f"\2{folder}\0" for folder in folders) + f"\1{file}"


def facts(path: str) -> FileFacts:
    """Return size and modification time of a file."""
    if not is_remote(path):
        status = os.stat(native(path))
        return FileFacts(status.st_size, status.st_mtime_ns)
    with _remote(path) as (files, inner):
        try:
            changed = round(files.modified(inner).timestamp() * 1e6) * 1000
        except NotImplementedError:
            changed = 0
        return FileFacts(int(files.size(inner)), changed)


def stamps(root: str, indices: range, name: Callable[[int], str]) -> Iterator[str]:
    """Yield size and modification time, or a tag, of each file `name(i)` below a folder, to notice replaced files.

    A remote folder is listed once, as a request for each file would take hours. Nothing is asked about files outside of
    it, or behind URLs in a list of local files.
    """
    if is_remote(root):
        with _remote(root) as (files, inner):
            listed = files.find(inner, detail=True)
            files.invalidate_cache()
        for i in indices:
            entry = listed.get(join(inner, name(i)) if inner else name(i), {})  # at the top of a zip file
            yield f"{entry.get('size')} {[entry[key] for key in _CHANGE_KEYS if key in entry]}"
        return
    for _, found in _local_facts(root, map(name, indices)):
        yield f"{found.size} {found.changed_ns}" if found else "missing"


def with_sizes(root: str, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Yield each name with the bytes of its file, None if it is missing; remote files count as 1."""
    for name, found in _local_facts(root, names):
        yield name, found and found.size


def _local_facts(root: str, names: Iterable[str]) -> Iterator[tuple[str, FileFacts | None]]:
    """Yield each name with the facts of its file, None without one; those of remote files are not looked up.

    From threads: network file systems answer many requests at a time.
    """
    remaining = iter(names)

    def look_at(part: list[str]) -> list[tuple[str, FileFacts | None]]:
        return [(name, look(join(root, name))) for name in part]

    def look(path: str) -> FileFacts | None:
        if is_remote(path):
            return FileFacts(1, 0)
        try:
            status = os.stat(native(path))
        except OSError:
            return None
        return FileFacts(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    parts = iter(lambda: list(islice(remaining, _AT_ONCE)), [])
    for part in map_ahead(look_at, parts, threads=16, ahead=32):
        yield from part


def read_file(path: str) -> bytes:
    """Return the content of a file."""
    if not is_remote(path):
        with open(native(path), "rb") as file:
            return file.read()
    with _remote(path) as (files, inner):
        return bytes(files.cat_file(inner))


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Yield a binary file open for reads at any position; a remote one is read in blocks."""
    if not is_remote(path):
        with open(native(path), "rb", buffering=0) as local:
            yield local
        return
    with _remote(path) as (files, inner), _stored(path, files, inner) or files.open(inner, "rb") as file:
        yield file


def read_range(path: str, offset: int, length: int) -> bytes:
    """Return `length` bytes of a file from `offset` on, or fewer at its end. The offset must be within the file.

    The file is opened for each call: a thousand open shards would exceed a process's usual limit.
    """
    if is_remote(path):
        with _remote(path) as (files, inner):
            if (stored := _stored(path, files, inner)) is None:
                return bytes(files.cat_file(inner, start=offset, end=offset + length))
            with stored:
                stored.seek(offset)
                return stored.read(length) or b""
    descriptor = os.open(native(path), os.O_RDONLY)
    try:
        data = os.pread(descriptor, length, offset)
        while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


@contextmanager
def reachable(path: str) -> Iterator[None]:
    """Report a missing permission, a network failure or a closed bucket as a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be accessed: {error}. Check the path and its permissions.") from error


def _type(path: str) -> str | None:
    try:
        with _remote(path) as (files, inner):
            return str(files.info(inner)["type"])
    except FileNotFoundError:
        return None


@lru_cache(maxsize=4)
def _open_zip(archive: str, stamp: FileFacts, process: int) -> Any:
    """Open a local zip file once in each process; fsspec would read its directory again for each image."""
    from fsspec.implementations.zip import ZipFileSystem

    return ZipFileSystem(archive)


class _Stored(io.RawIOBase):
    """An uncompressed file in a local zip file.

    zipfile itself has one position for all threads: up to Python 3.13, reads after a seek can return other bytes.
    """

    def __init__(self, archive: str, start: int, size: int) -> None:
        self._file = os.open(archive, os.O_RDONLY)
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it."""
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:  # as of a file: the bytes before are not this file's
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read at the position."""
        length = max(0, min(len(buffer), self._size - self._position))
        data = os.pread(self._file, length, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the archive."""
        if not self.closed:
            os.close(self._file)
        super().close()


def _stored(path: str, files: Any, inner: str) -> _Stored | None:
    """Open a file in a local zip file; None if it is compressed or somewhere else, or its header is damaged."""
    if (archive := _local_zip(path)) is None:
        return None
    member = files.zip.NameToInfo.get(inner)
    if member is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:  # encrypted
        return None
    header = read_range(archive, member.header_offset, 30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        return None  # zipfile reports it
    return _Stored(
        archive, member.header_offset + 30 + sum(struct.unpack("<HH", header[26:])), member.file_size
    )


def _local_zip(path: str) -> str | None:
    """Return the local zip file that a path points into."""
    inner, _, archive = path.partition("::")
    return archive if inner.startswith("zip://") and "://" not in archive else None


@contextmanager
def _remote(path: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a path and the path in it; report errors of its client library as OSErrors.

    Raises:
        DataError: the scheme is unknown, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    archive = _local_zip(path)
    try:
        if archive is not None:
            files = _open_zip(archive, facts(archive), os.getpid())
            inner = path.partition("::")[0].removeprefix("zip://")
        else:
            files, inner = url_to_fs(path)
    except zipfile.BadZipFile as error:
        raise OSError(f"{archive or path}: {error}") from error
    except ImportError as error:  # the message names the package
        raise DataError(
            f"{path} needs a package that is not installed: {error}. Install it, or copy the images to this machine."
        ) from error
    except ValueError as error:
        raise DataError(
            f"The scheme of {path} must be one that fsspec supports: {error}. Check the path."
        ) from error
    try:
        yield files, inner
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except Exception as error:  # each client library has its own
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error
