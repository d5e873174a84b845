"""Files on this machine and in object stores, by path: `/data/train`, `gs://bucket/train`, `s3://bucket/train`.

A path with a scheme is read by TensorFlow's file systems, which are imported only then; every other
path is read by Python alone.
"""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable

# What brings a scheme that TensorFlow does not bring itself; importing it registers the file system.
_PLUG_INS = {
    "s3": "tensorflow-io",
    "hdfs": "tensorflow-io",
    "viewfs": "tensorflow-io",
    "az": "tensorflow-io",
    "gs": "tensorflow-io-gcs-filesystem",
}


class FileFacts(NamedTuple):
    """Size in bytes and time of the last change, in nanoseconds since 1970."""

    size: int
    changed_ns: int


def is_remote(path: str | Path) -> bool:
    """Whether TensorFlow's file systems read the path: it has a scheme."""
    return "://" in str(path)


def local_or_remote(path: str | Path) -> str:
    """The path as it will be read: `~` resolved, or its scheme known to be served here.

    Raises:
        DataError: no file system for the scheme is installed.
    """
    text = str(path)
    if not is_remote(text):
        return os.path.expanduser(text)
    scheme = text.partition("://")[0]
    if scheme in _schemes():
        return text
    plug_in = _PLUG_INS.get(scheme)
    reason = _import_plug_in(plug_in) if plug_in else "Check the spelling, or copy the images here."
    if scheme not in _schemes():
        raise DataError(
            f"TensorFlow must have a file system for {scheme}://, of {text}; it has {', '.join(_schemes())}. {reason}"
        )
    return text


def _schemes() -> list[str]:
    return sorted(name for name in _gfile().get_registered_schemes() if name)


def _import_plug_in(package: str) -> str:
    """Imports what brings a file system; returns what to do if that did not help."""
    try:
        importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return f"Install its plug-in, pip install {package}, or copy the images here."
        return f"Its plug-in {package} cannot be imported: {error}."
    except Exception as error:  # a plug-in of another version of TensorFlow's fails as it likes
        return f"Its plug-in {package} cannot be imported: {type(error).__name__}: {error}."
    return f"Its plug-in {package} is there, but has none for this TensorFlow: install the version that fits."


def is_folder(path: str) -> bool:
    """Whether it is a folder that is there."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _told_as_os_errors(path):
        return bool(_gfile().isdir(path))


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    if not is_remote(path):
        return os.path.exists(path)
    with _told_as_os_errors(path):
        return bool(_gfile().exists(path))


def join(folder: str, name: str) -> str:
    """The path of a name in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def names_in(folder: str) -> list[str]:
    """Names of the files and folders in a folder, sorted."""
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _told_as_os_errors(folder):
        return sorted(name.rstrip("/") for name in _gfile().listdir(folder))


def matching(pattern: str) -> list[str]:
    """The paths that a pattern with `*`, `?` and `[...]` names, sorted."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    with _told_as_os_errors(pattern):
        return sorted(_gfile().glob(pattern))


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Path, folders and files of every folder below a remote one, as `os.walk`; the folders may be pruned."""
    with _told_as_os_errors(folder):
        for path, folders, files in _gfile().walk(folder):
            folders[:] = sorted(name.rstrip("/") for name in folders)
            yield path.rstrip("/"), folders, sorted(files)


def facts(path: str) -> FileFacts:
    """Size and time of the last change of a file.

    Raises:
        OSError: it cannot be looked at.
    """
    if not is_remote(path):
        status = os.stat(path)
        return FileFacts(status.st_size, status.st_mtime_ns)
    with _told_as_os_errors(path):
        told = _gfile().stat(path)
        return FileFacts(int(told.length), int(told.mtime_nsec))


def read_file(path: str) -> bytes:
    """A file, whole.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    with _told_as_os_errors(path), _gfile().GFile(path, "rb") as file:
        return bytes(file.read())


def read_range(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer where it ends.

    Opened for each call: a thousand shards held open would exceed the usual limit of a process.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, offset)
            while len(data) < length and (
                more := os.pread(descriptor, length - len(data), offset + len(data))
            ):
                data += more
            return data
        finally:
            os.close(descriptor)
    with _told_as_os_errors(path), _gfile().GFile(path, "rb") as file:
        file.seek(offset)
        return bytes(file.read(length))


def _gfile() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise DataError(
            "Paths with a scheme, as gs://, are read by TensorFlow, which is not installed: "
            'pip install "swav-tf[train]"'
        ) from error
    return tf.io.gfile


@contextmanager
def _told_as_os_errors(path: str) -> Iterator[None]:
    """TensorFlow's errors as the OSErrors that local files give, so that one image is one bad image."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"{printable(path)}: {_first_line(error)}") from error
    except tf.errors.OpError as error:
        raise OSError(f"{printable(path)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
