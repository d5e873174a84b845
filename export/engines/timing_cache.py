"""Timings of kernels in a file, so that later builds on the same GPU are quicker. No TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swav_tf.errors import DataError
from swav_tf.whole_file import whole_file


def read_timing_cache(config: Any, path: Path) -> None:
    """Gives a builder the timings in a file; it need not be there yet.

    Raises:
        DataError: the file is damaged, or of another GPU or version.
    """
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DataError(f"--timing-cache {path} cannot be read: {error}.") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise DataError(
            f"--timing-cache must be a file by this TensorRT on this GPU, or a new one. Received: {path}, which is "
            "of another or damaged. Give another name."
        )


def write_timing_cache(config: Any, path: Path) -> None:
    """Writes the timings that a builder has now.

    Raises:
        DataError: the disk is full or refuses.
    """
    with whole_file(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
