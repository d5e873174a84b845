"""Load TensorFlow without its start-up messages."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 2: errors only, 3: nothing


def load_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up messages, unless TF_CPP_MIN_LOG_LEVEL is set in the environment.

    Errors remain visible, except those about CUDA on a machine without an NVIDIA driver.
    """
    if LOG_LEVEL in os.environ:
        return
    os.environ[LOG_LEVEL] = "2" if NVIDIA_DRIVER.exists() else "3"
    with _stderr_captured():
        import tensorflow  # noqa: F401


@contextmanager
def _stderr_captured() -> Iterator[None]:
    """Drop what C++ writes to stderr during the import, which no log level stops; show it if the import fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(terminal, captured.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
