from pathlib import Path

import pytest

from evaluate.benchmark.plan import find_models, plan_cells
from evaluate.benchmark.run import run_benchmark
from evaluate.benchmark.schema import Benchmark, Settings
from tests.evaluate.exported import make_exported

QUICK = Settings(seconds=0.02, runs=5, threads=1, cuda_graph=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    return make_exported(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def measure():
    """Measure a folder in moments."""

    def measure(folder: Path, **requested) -> Benchmark:
        models = find_models([folder])
        return run_benchmark(plan_cells(models, **requested), models, QUICK)

    return measure


@pytest.fixture(scope="session")
def measured(exported, measure) -> Benchmark:
    """One benchmark for the tests that only read it."""
    return measure(exported, runners=("ort-cpu",), precisions=("fp32", "fp16", "int8"), batches=(1, 4))
