"""Files in a folder that are not images: how they are recognized and reported.

Hidden files and folders are skipped. The lists below name leftovers that are not hidden, from public reports:
immich-app/immich#7980, #12566, #15773 (@eaDir, #snapshot), photoprism/photoprism#4921 and bpatrik/pigallery2#238, #1137
(recycle bins), nova-video-player/aos-AVP#1308 (QNAP), nextcloud/server#52258 (file systems),
fire-eggs/DarkThumbs#36 (__MACOSX), Geektoolkit/Dynaframe3#71 (libraries of Photos and Lightroom).
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable

_SYSTEM: Final = frozenset({
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "$recycle.bin",
    "recycler", "system volume information", "lost+found", "__macosx", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})  # fmt: skip
_SYSTEM_ENDINGS: Final = (".lrdata", ".lrlibrary", ".photoslibrary")
_UNREAD: Final = frozenset({
    ".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd",
    ".exr", ".tga", ".dcm", ".svg",
})  # extensions of pictures that are not read  # fmt: skip
_SHOWN: Final = 2  # examples for each reason


def is_system(name: str) -> bool:
    """Return whether operating systems, network storage or picture editors create files of this name."""
    lower = name.lower()
    return lower in _SYSTEM or lower.endswith(_SYSTEM_ENDINGS)


class LeftOut:
    """Files and folders that were not read as images, counted by reason."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.pictures = 0  # those among them that are pictures by name
        self._examples: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return "; ".join(
            f"{count:,} {reason} ({', '.join(map(printable, self._examples[reason]))}"
            f"{', ...' if count > len(self._examples[reason]) else ''})"
            for reason, count in self.counts.most_common()
        )

    def add(self, name: str, path: str) -> None:
        """Count a file or folder; the last part of its path, or the folder that it is in, is the reason."""
        stem, dot, extension = name.rpartition(".")
        if name.startswith("._"):
            reason = "resource forks of macOS"
        elif name.startswith("."):
            reason = "hidden"
        elif is_system(name):
            reason = "created by the operating system or an editor"
        elif f".{extension.lower()}" in _UNREAD:
            reason = f"pictures of a format that is not read, .{extension.lower()}"
            if extension.lower() in ("heic", "heif", "hif"):
                reason = f'.{extension.lower()} pictures, which need `pip install "swav-tf[heif]"`'
            self.pictures += 1
        else:
            reason = f"with extension .{extension.lower()}" if stem and dot else "without extension"
        self.add_reason(reason, path)

    def add_picture(self, reason: str, path: str) -> None:
        """Count an image that is left out, or a link that probably led to images."""
        self.pictures += 1
        self.add_reason(reason, path)

    def add_reason(self, reason: str, path: str) -> None:
        """Count a file or folder that is left out for another reason."""
        self.counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _SHOWN:
            examples.append(path)

    def report(self, root: str, images: int) -> None:
        """Log once what was left out of a folder, as a warning if it contains pictures.

        Raises:
            DataError: more pictures were left out than read.
        """
        text = f"{root}: {images:,} images; left out: {self}."
        if self.pictures > images:
            raise DataError(
                f"More pictures were skipped than read. {text} Convert them to JPEG or PNG, read images next to class "
                "folders with data.kind=images, or pass a folder of the images you want."
            )
        if self:
            log_once(logging.WARNING if self.pictures else logging.INFO, text)
