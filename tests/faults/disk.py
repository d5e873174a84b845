"""A small disk in a folder, which can be made full or read-only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOM = 256 * 2**20
PAGE = 4096


class Disk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def used(self) -> int:
        """Return the bytes in use."""
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def leave(self, free: int) -> None:
        """Resize the disk so that this many bytes are free."""
        self._remount(f"size={self.used + free // PAGE * PAGE}")

    def make_read_only(self) -> None:
        self._remount("ro")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a tmpfs at a folder; skip the test if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted; that needs root")
    try:
        (folder / "page").write_bytes(bytes(PAGE))  # a size of 0 would mean no limit
        yield Disk(folder)
    finally:
        subprocess.run(["umount", folder], check=False)
