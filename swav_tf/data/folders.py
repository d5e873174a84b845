"""Images that are files below a folder: unlabelled, or with one folder a class. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swav_tf.data import storage
from swav_tf.plumbing.errors import DataError

EXTENSIONS: Final = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


class _Files:
    """Images that are files below a folder, each by its path relative to it."""

    def __init__(self, path: str | Path) -> None:
        self.root = _existing_folder(path)
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The file of image `index`."""
        return storage.read_file(storage.join(self.root, self._names[index]))

    def facts(self, index: int) -> storage.FileFacts:
        """Size and time of the last change of the file of image `index`."""
        return storage.facts(storage.join(self.root, self._names[index]))

    def image_name(self, index: int) -> str:
        """Path of image `index` relative to the folder; in class folders `<class>/<file>`."""
        return self._names[index]


class ImageFolder(_Files):
    """All images below a folder at any depth, in the order of their paths, unlabelled."""

    kind: Final = "images"
    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._names = list(_images_below(self.root))
        if not self._names:
            raise _no_image(self.root)

    def label(self, index: int) -> int:
        """-1: these images have no labels."""
        return -1


class ClassFolders(_Files):
    """One folder a class, `<root>/<class>/*.JPEG` as ImageNet comes; classes are numbered by sorted name."""

    kind: Final = "class_folders"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._labels: list[int] = []
        classes: list[str] = []
        for folder in _folders_in(self.root):
            names = [f"{folder}/{name}" for name in _images_below(self.root, folder)]
            if names:
                self._names += names
                self._labels += [len(classes)] * len(names)
                classes.append(folder)
        self.class_names = tuple(classes)
        if not classes:
            if next(_images_below(self.root), None) is not None:
                raise DataError(
                    f"data.kind class_folders needs one folder for each class, but {self.root} holds its "
                    "images itself. Set data.kind to images if they have no labels, or make class folders."
                )
            raise _no_image(self.root)

    def label(self, index: int) -> int:
        """Number of the class of image `index`."""
        return self._labels[index]


def _existing_folder(path: str | Path) -> str:
    folder = storage.local_or_remote(path)
    if not storage.exists(folder):
        raise DataError(f"the folder of images must exist: {folder} does not. Check the path.")
    if not storage.is_folder(folder):
        raise DataError(
            f"images are read from a folder, but {folder} is a file. Give the folder that holds it."
        )
    return folder


def _no_image(folder: str) -> DataError:
    entries = len(storage.names_in(folder))
    what = "is empty" if entries == 0 else f"has {entries} entries, but no image at any depth"
    return DataError(f"the folder {folder} must hold images ({', '.join(EXTENSIONS)}, any case); it {what}.")


def _folders_in(root: str) -> list[str]:
    """Names of the folders in a folder, hidden ones and links back to it left out, sorted."""
    if storage.is_remote(root):
        _, folders, _ = next(storage.walk(root))
        return [name for name in folders if not name.startswith(".")]
    here = os.path.realpath(root)
    with os.scandir(root) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and entry.is_dir()
            and not (entry.is_symlink() and _holds(os.path.realpath(entry.path), here))
        )


def _images_below(root: str, folder: str = "") -> Iterator[str]:
    """Paths of all images below a folder in `root`, or below `root` itself, relative to that folder.

    They are sorted within each folder. Hidden files are left out: a Mac leaves `._name.JPEG` beside
    every `name.JPEG` it copies. Linked folders are followed, each once, but never round a loop.
    """
    start = storage.join(root, folder) if folder else root
    if storage.is_remote(root):
        return _remote_images_below(start)
    # Resolved once, so that a relative path or links in it do not change what is a loop.
    way = (os.path.realpath(root),)
    return _walk(start, "", _entered(way, start) if folder else way, set())


def _walk(path: str, prefix: str, way: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    """The images below `path`; `way` as `_entered` has it, `seen` the targets of the links that were followed."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                files.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    for name in sorted(files):
        yield prefix + name
    followed = []
    for name in sorted(folders):  # of two links to one folder the first counts, whatever the disk lists first
        further = _entered(way, f"{path}/{name}")
        if len(further) > len(way):
            target = further[0]
            if target in seen or any(_holds(target, here) for here in way):
                continue
            seen.add(target)
        followed.append((name, further))
    for name, further in followed:
        yield from _walk(f"{path}/{name}", f"{prefix}{name}/", further, seen)


def _entered(way: tuple[str, ...], path: str) -> tuple[str, ...]:
    """A way with one folder more.

    A way has no links in it: first where one stands, then the folders that were left by a link, the last first.
    """
    if os.path.islink(path):
        return (os.path.realpath(path), *way)
    return (os.path.join(way[0], os.path.basename(path)), *way[1:])


def _holds(folder: str, path: str) -> bool:
    """Whether a path lies in a folder or is it; both without links."""
    return os.path.commonpath([folder, path]) == folder


def _remote_images_below(folder: str) -> Iterator[str]:
    """The same of an object store, in the same order; it knows no links."""
    for path, folders, files in storage.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = path[len(folder.rstrip("/")) :].lstrip("/")
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield f"{prefix}/{name}" if prefix else name
