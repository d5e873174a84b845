"""Keeps TensorFlow's own messages from drowning ours."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # TensorFlow's: 2 errors only, 3 nothing


def load_tensorflow_quietly() -> None:
    """Import TensorFlow without its greetings, unless TF_CPP_MIN_LOG_LEVEL is set in the environment.

    Errors stay, but for those about CUDA where there is no NVIDIA driver at all.
    """
    if LOG_LEVEL in os.environ:
        return
    os.environ[LOG_LEVEL] = "2" if NVIDIA_DRIVER.exists() else "3"
    with _stderr_held():
        import tensorflow  # noqa: F401


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Drop what C++ writes to stderr, which no log level stops during import; tell it if the import fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
