"""Settings that must stand before any test imports TensorFlow, Keras or matplotlib."""

import os
import socket
from collections.abc import Iterator

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture
def port() -> Iterator[int]:
    """Reserve a TCP port: nothing listens there unless the test does, and the system gives it to no other socket."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]
