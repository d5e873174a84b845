"""Load TensorFlow, which takes several seconds, with a notice on a terminal."""

from __future__ import annotations

import sys

NOTICE = "Loading TensorFlow ..."


def load_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up messages; the notice disappears afterwards."""
    shown = sys.stderr.isatty() and "tensorflow" not in sys.modules
    if shown:
        sys.stderr.write(NOTICE)
        sys.stderr.flush()
    try:
        from swav_tf.model.startup import start

        start()
    finally:
        if shown:
            sys.stderr.write(f"\r{' ' * len(NOTICE)}\r")
            sys.stderr.flush()
