"""A benchmark that takes moments."""

from evaluate.benchmark.artifacts import find_artifacts
from evaluate.benchmark.run import plan_cells, run_benchmark
from evaluate.benchmark.schema import Benchmark, Settings

QUICK = Settings(seconds=0.02, runs=5, max_seconds=5, rounds=1, threads=1, cuda_graph=True)


def measure(folder, *, settings=QUICK, **wanted) -> Benchmark:
    artifacts = find_artifacts([folder])
    return run_benchmark(plan_cells(artifacts, **wanted), artifacts, settings, timeout_seconds=60)
