"""Load TensorFlow without its start-up messages, and give Keras the settings that the networks are written for.

A user's keras.json, KERAS_BACKEND and log level are meant for other programs: here they must not change a feature.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log

NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
LOG_LEVEL: Final = "TF_CPP_MIN_LOG_LEVEL"  # 0: everything, 2: errors only, 3: nothing
SETTINGS: Final = {"floatx": "float32", "image_data_format": "channels_last", "epsilon": 1e-7}


def start() -> None:
    """Import TensorFlow and Keras, quietly unless the environment's log level is 0 or 1.

    Errors remain visible, except those about CUDA on a machine without an NVIDIA driver.

    Raises:
        UsageError: this process has imported Keras with another backend.
    """
    # By default TensorFlow uses oneDNN only on processors with VNNI or AMX.
    # On other processors it also halves the time of a step.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    level = os.environ.get(LOG_LEVEL)
    if "tensorflow" not in sys.modules and level not in ("0", "1"):
        os.environ[LOG_LEVEL] = "2" if NVIDIA_DRIVER.exists() and level != "3" else "3"
        with stderr_captured():
            import tensorflow  # noqa: F401
    logging.getLogger("tensorflow").addFilter(_is_no_retracing)
    set_keras()


def set_keras() -> None:
    """Set what layers depend on, and log what a user's settings were; UsageError for another backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            "swav_tf needs Keras' backend tensorflow. Received: a process that has imported Keras with "
            f"{keras.backend.backend()}. Import swav_tf before Keras, or set KERAS_BACKEND=tensorflow."
        )
    for name, needed in SETTINGS.items():
        if (found := getattr(keras.config, name)()) != needed:
            log.info(
                f"Keras' {name} is {needed} in this process, instead of {found} as in your Keras settings."
            )
            getattr(keras.config, f"set_{name}")(needed)


@contextmanager
def stderr_captured() -> Iterator[None]:
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


def _is_no_retracing(record: logging.LogRecord) -> bool:
    """Return False for the advice on retracing: evaluation traces again for its last, smaller batch."""
    return "tf.function retracing" not in record.getMessage()
