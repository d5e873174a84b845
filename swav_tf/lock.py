"""A file that one process at a time holds; the system lets go of it when the process dies. No TensorFlow."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from swav_tf.errors import UsageError


def take_lock(file: IO[Any], folder: Path) -> bool:
    """Takes the lock of an open file until that is closed; False: another process has it.

    Args:
        file: open to be written.
        folder: what the lock is for, for the message.

    Raises:
        UsageError: the file system has no locks, or refuses this one.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # this and nothing else means: taken
        return False
    except OSError as error:
        raise UsageError(
            f"{folder} must lie on a file system with locks, which keep two processes from writing it at once. "
            f"Received: {error.strerror or error}, from flock. Have it mounted with locks (Lustre: option flock; NFS: "
            "with its lock service running, or option local_lock=flock if one machine alone writes there), or "
            "give a folder on another file system."
        ) from error
    return True
