"""The hidden folder in which an export is made, before its files take their names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PREFIX: Final = ".part-"


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder in `target`, gone at the end; those that killed exports left there go at the start.

    A living process holds a lock on its own, which the system lets go of when it dies. Where a file system
    has no such locks, what others left stays.

    Raises:
        OSError: it cannot be made.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target, wait=True):  # nobody takes a folder for left over between its making and its lock
        for leftover in target.glob(f"{PREFIX}*/"):
            with _locked(leftover, wait=False) as ours:
                if ours:
                    shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder, wait=False))
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a folder; False where somebody else does, or nobody can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)
