"""Settings that must be made before any test imports TensorFlow, Keras or matplotlib; fixtures of all tests."""

import ctypes
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace

import pytest

from swav_tf.plumbing.log import log
from tests import tiny_network  # noqa: F401, recipes name it
from tests.ports import reserve_port

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow's own allocator on the CPU never returns memory to the system, which would add up to 3 GB.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"
# Graphs are built of many objects that stay: the collector's default of 700 looks at them for a tenth of all time.
gc.set_threshold(100_000)


def pytest_configure(config):
    """Create the folder that all processes of this run share."""
    if not hasattr(config, "workerinput"):
        os.environ["SWAV_TF_TEST_SHARED"] = tempfile.mkdtemp(prefix="swav-tf-tests-")


def pytest_unconfigure(config):
    """Remove it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["SWAV_TF_TEST_SHARED"], ignore_errors=True)


LANES = {"faults": "faults", "test_quickstart.py": "notebook"}


def pytest_ignore_collect(collection_path, config):
    """Leave out the long lanes, even their imports, unless the expression of `-m` names them."""
    lane = LANES.get(collection_path.name)
    return True if lane and lane not in config.option.markexpr else None


def pytest_collection_modifyitems(items):
    """Begin with the files that start most processes, then those that train: at the end they would run alone."""
    processes = Counter(item.path for item in items if item.get_closest_marker("multiprocess"))
    trains = {item.path for item in items if {"training", "method"} & set(item.path.parts)}
    items.sort(key=lambda item: (-processes[item.path], item.path not in trains))


@pytest.fixture(autouse=True, scope="module")
def memory_released():
    """Release the models and graphs of a test file, which would add up to gigabytes over all files."""
    yield
    if "keras" in sys.modules:
        import keras

        keras.backend.clear_session()
    gc.collect()
    gc.freeze()  # what is left stays: without this each later collection looks at it again, for seconds
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def networks_released():
    """Release each network after its test: those of a file together can take 3 GB."""
    yield
    gc.collect()


@pytest.fixture
def port() -> int:
    """Reserve a port where nothing listens unless the test does."""
    return reserve_port()


@pytest.fixture
def nvml(monkeypatch):
    """Stand in for NVIDIA's library on a machine with four GPUs, of which all are visible."""

    def by_uuid(name):
        if name == "GPU-unknown":
            raise OSError
        return int(name.removeprefix("GPU-"))

    library = SimpleNamespace(
        NVMLError=OSError, NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.0",
        nvmlDeviceGetCount=lambda: 4,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda handle: "NVIDIA H100",
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=16e9, used=handle * 2**20),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetClockInfo=lambda handle, clock: 1000,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def logged():
    """Collect the messages of the logger as (level, text), whatever handlers it has."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield records
    log.removeHandler(handler)
    log.setLevel(level)
