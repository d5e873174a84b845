"""Keeps TensorFlow's own messages from drowning ours."""

from __future__ import annotations

import os
from pathlib import Path

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def quiet_tensorflow() -> None:
    """Ask TensorFlow, before it is imported, for errors only; without an NVIDIA driver not for CUDA's either.

    TF_CPP_MIN_LOG_LEVEL in the environment wins.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if NVIDIA_DRIVER.exists() else "3")
