"""Files that are whole under their names, or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swav_tf.errors import DataError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name to write a file under, with the same ending; the file gets its own when all went well.

    What was there before stays as it is until then. Do nothing inside but write: what the system refuses
    there is told as a file that could not be written.

    Raises:
        DataError: the disk is full or refuses.
    """
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written: {error.strerror or error}. Make room, or give another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk does not even let go of what is not there
            partial.unlink(missing_ok=True)
