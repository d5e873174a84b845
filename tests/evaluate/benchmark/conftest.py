from pathlib import Path

import pytest

from evaluate.benchmark.schema import Benchmark
from tests.evaluate.benchmark.measuring import measure
from tests.evaluate.exported import make_exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    return make_exported(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def measured(exported) -> Benchmark:
    """One benchmark for the tests that only look at it."""
    return measure(exported, runners=("ort-cpu",), precisions=("fp32", "fp16", "int8"), batches=(1, 4))
