"""A disk of its own in a folder, which can be made full or read-only. It is a tmpfs, for which one must be root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 256 * 2**20
PAGE = 4096


class SmallDisk:
    """A disk that is there.

    Attributes:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def used(self) -> int:
        """Bytes."""
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def leave(self, free: int) -> None:
        """Makes it so large that so many bytes are free."""
        self._remount(f"size={self.used + free // PAGE * PAGE}")

    def make_read_only(self) -> None:
        """From now on."""
        self._remount("ro")

    def _remount(self, option: str) -> None:
        subprocess.run(
            ["mount", "--output", f"remount,{option}", self.folder], check=True, capture_output=True
        )


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk at a folder, gone at the end.

    Raises:
        PermissionError: it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode().strip())
    try:
        (folder / "page").write_bytes(bytes(PAGE))  # a size of 0 would mean no limit
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", folder], check=False)
