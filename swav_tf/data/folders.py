"""Image files below a folder: unlabeled, or in one folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from swav_tf.data import storage
from swav_tf.data.decode import EXTENSIONS, looks_like_an_image
from swav_tf.data.image_source import ImageSource
from swav_tf.data.leftovers import LeftOut, is_system
from swav_tf.data.names import PackedNames
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import name_bytes, printable, text_of

_Sized = tuple[str, int | None]  # name and bytes of a file
_RUN: Final = {"config.yaml", "checkpoints"}  # in the folder of a run
_STRAY: Final = "images next to the class folders, not in one of them"


class Files(ImageSource):
    """Image files, each known by its path relative to `root`, in class folders `<class>/<file>`."""

    def __init__(self, root: str, names: Iterable[str], left_out: LeftOut, place: str | None = None) -> None:
        self.root, self.left_out = root, left_out
        self._names = PackedNames(names)
        if not len(self._names):
            raise _no_images(root, left_out)
        left_out.report(place or root, len(self._names))

    def read(self, index: int) -> bytes:
        """Return the encoded file of image `index`."""
        return storage.read_file(storage.join(self.root, self._names[index]))

    def stamps(self, indices: range) -> Iterator[str]:
        """Yield size and modification time of the files of images `indices`."""
        return storage.stamps(self.root, indices, self.image_name)

    def facts(self, index: int) -> storage.FileFacts:
        """Return size and modification time of the file of image `index`."""
        return storage.facts(storage.join(self.root, self._names[index]))


class NamedImages(Files):
    """Some images of a folder by number and name. The folder is not listed."""

    def __init__(self, path: str | Path, names: Mapping[int, str]) -> None:
        self.root, self._names = _existing_folder(path), names


class ImageFolder(Files):
    """All images below a folder at any depth, unlabeled; a folder's files come before its folders, by name."""

    kind = "images"

    def __init__(self, path: str | Path) -> None:
        root, left_out = _existing_folder(path), LeftOut()
        if storage.is_remote(root):
            sized = _remote_images(root, left_out)
        else:
            sized = storage.with_sizes(root, _walk(root, "", set(), left_out))
        super().__init__(root, _not_empty(sized, left_out), left_out)


class ClassFolders(Files):
    """One folder for each class, `<root>/<class>/*.JPEG` as in ImageNet; classes are numbered by sorted name."""

    kind = "class_folders"

    def __init__(self, path: str | Path) -> None:
        root, left_out = _existing_folder(path), LeftOut()
        counts = Counter[str]()  # in the order of the classes
        folders, sized = _in_classes(root, left_out)

        def names() -> Iterator[str]:
            for name in _not_empty(sized, left_out):
                counts[name.partition("/")[0]] += 1
                yield name
            for folder in folders:
                if folder not in counts:
                    log.warning(f"{root}: folder {printable(folder)} has no images and is not a class.")

        super().__init__(root, names(), left_out)
        self.class_names = tuple(text_of(name_bytes(name)) for name in counts)
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), list(counts.values()))


def _existing_folder(path: str | Path) -> str:
    folder = storage.local_or_remote(path)
    if not storage.exists(folder):
        raise DataError(f"The folder of images must exist. Not found: {folder}. Check the path.")
    if not storage.is_folder(folder):
        raise DataError(
            f"Images are read from a folder, but {folder} is a file. Pass the folder that contains it."
        )
    return folder


def has_images(root: str, folder: str) -> bool:
    """Return whether a folder in `root` has an image at any depth."""
    if storage.is_remote(root):
        return any(is_wanted(name, LeftOut()) for name in storage.walk_remote(storage.join(root, folder)))
    return next(_walk(root, f"{folder}/", set(), LeftOut()), None) is not None


def _no_images(root: str, left_out: LeftOut) -> DataError:
    entries = storage.names_in(root)
    if any(map(is_image, entries)):
        return DataError(
            f"data.kind class_folders needs one folder for each class, but the images are directly in {root}. "
            "Set data.kind to images if they have no labels, or move them into class folders."
        )
    found = f"has {len(entries)} entries, but no image at any depth" if entries else "is empty"
    more = f"; left out: {left_out}" if left_out else ""
    return DataError(
        f"{root} must contain images ({', '.join(EXTENSIONS)}, any case). The folder {found}{more}."
    )


def is_image(name: str) -> bool:
    """Return whether a name is that of an image. A Mac leaves a hidden `._x.jpg` for every `x.jpg` it copies."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".") and not is_system(name)


def _in_classes(root: str, left_out: LeftOut) -> tuple[list[str], Iterator[_Sized]]:
    """Return the sorted folders in a local `root`, also empty ones, and the images in all folders."""

    def is_inside(name: str) -> bool:
        if "/" not in name:
            left_out.add_picture(_STRAY, name)
        return "/" in name

    if storage.is_remote(root):
        return [], (file for file in _remote_images(root, left_out) if is_inside(file[0]))
    files, folders = _entries(root, "", left_out)
    for name in files:
        left_out.add_picture(_STRAY, name)
    folders = [folder for folder in folders if _is_new(root, folder, set())]
    inside = chain.from_iterable(_walk(root, f"{folder}/", set(), left_out) for folder in folders)
    return folders, storage.with_sizes(root, inside)


def _remote_images(root: str, left_out: LeftOut) -> Iterator[_Sized]:
    """Return the images below a remote folder."""
    return (file for file in storage.remote_files_below(root).items() if is_wanted(file[0], left_out))


def _not_empty(sized: Iterable[_Sized], left_out: LeftOut) -> Iterator[str]:
    """Yield the images that have content."""
    for name, size in sized:
        if size == 0:
            left_out.add_picture("empty", name)
        else:
            yield name


def is_wanted(path: str, left_out: LeftOut) -> bool:
    """Return whether a path is that of an image in no hidden or system folder; count it otherwise."""
    parts = path.split("/")
    unwanted = [part for part in parts[:-1] if part.startswith(".") or is_system(part)]
    if unwanted or not is_image(parts[-1]):
        left_out.add((unwanted or parts[-1:])[0], path)
        return False
    return True


def _walk(root: str, prefix: str, seen: set[str], left_out: LeftOut) -> Iterator[str]:
    """Yield the images below `root`/`prefix` relative to `root`; `seen` are the targets of links followed so far."""
    files, folders = _entries(root, prefix, left_out)
    for name in files:
        yield prefix + name
    # All links in one folder are decided on before any is followed: their names decide, not what is below them.
    for name in [name for name in folders if _is_new(root, prefix + name, seen)]:
        yield from _walk(root, f"{prefix}{name}/", seen, left_out)


def _entries(root: str, prefix: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Return the sorted names of the images and of the folders in a folder, without hidden and system ones.

    The folder of a run has neither: its pictures, such as a confusion matrix, are not to be trained on.
    """
    images, folders = [], []
    with os.scandir(storage.join(root, prefix)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
        if prefix and {entry.name for entry in entries} >= _RUN:
            left_out.add_reason("folders of runs", prefix.rstrip("/"))
            return [], []
        for entry in entries:
            # First: to look at links that go around in a circle is an error.
            if entry.is_symlink() and not os.path.exists(entry.path):
                left_out.add_picture("links whose target is missing", prefix + entry.name)
            elif (is_image(entry.name) or _is_nameless_image(entry)) and entry.is_file():
                images.append(entry.name)
            elif entry.name.startswith(".") or is_system(entry.name) or not entry.is_dir():
                left_out.add(entry.name, prefix + entry.name)
            else:
                folders.append(entry.name)
    return images, folders


def _is_nameless_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a file without an extension, as in caches, has the content of an image."""
    if "." in entry.name or is_system(entry.name) or not entry.is_file():
        return False
    try:
        with open(entry.path, "rb") as file:
            return looks_like_an_image(file.read(16))
    except OSError:
        return False


def _is_new(root: str, name: str, seen: set[str]) -> bool:
    """Return whether to walk a folder: unless it is a link to one of its parents, or to a folder in `seen`."""
    path = storage.join(root, name)
    if not os.path.islink(path):
        return True
    target = os.path.realpath(path)
    # Real paths of all folders on the way here, so that a relative root or links on the way do not hide a loop.
    parts = name.split("/")[:-1]
    way = [os.path.realpath(os.path.join(root, *parts[:depth])) for depth in range(len(parts) + 1)]
    if target in seen or any(os.path.commonpath([target, folder]) == target for folder in way):
        return False
    seen.add(target)
    return True
