"""Settings that must stand before any test imports TensorFlow, Keras or matplotlib."""

import os

import pytest

from tests.ports import reserve_port

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture
def port() -> int:
    """Reserve a port where nothing listens unless the test does."""
    return reserve_port()
