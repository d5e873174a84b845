"""Statistics of measured times, and the marks of figures that deserve less trust."""

import numpy as np
import pytest

from evaluate.benchmark.run import time_runs
from evaluate.benchmark.schema import Cell, Settings, marks_of, percentile, relative_error, timing_of

CELL = Cell(model="m", runner="ort-cuda", precision="fp32", batch=1, status="ok")


# Bug caught: a p99 of a hundred runs, which is their maximum.
@pytest.mark.parametrize(("percent", "needed"), [(50, 20), (90, 100), (95, 200), (99, 1000)])
def test_a_percentile_takes_ten_samples_beyond_it(percent, needed) -> None:
    samples = np.random.default_rng(percent).gamma(2, 3, needed)
    assert percentile(samples[1:], percent) is None
    found = percentile(samples, percent)
    assert found == pytest.approx(np.percentile(samples, percent))
    assert np.sum(samples > found) >= 10


# Bug caught: an error smaller than that of repeated measurements, so that chance looks like a difference.
def test_the_error_is_that_of_repeated_measurements() -> None:
    draw = np.random.default_rng(3)

    def runs() -> np.ndarray:
        """A process, off by 2 %, of 20 busy or quiet seconds that differ by 5 %."""
        seconds = 10 * (1 + draw.normal(0, 0.02)) * (1 + draw.normal(0, 0.05, 20))
        return np.repeat(seconds, 50) * (1 + draw.normal(0, 0.001, 1000))

    many = [runs() for _ in range(400)]
    truth = np.std([np.median(each) for each in many]) / 10
    estimate = np.sqrt(np.mean([relative_error(each) ** 2 for each in many]))
    assert truth * 0.85 <= estimate <= truth * 1.3
    assert relative_error(np.full(100, 10.0)) == relative_error(np.ones(1)) == pytest.approx(0.02)


# Bugs caught: warm-up runs among the samples, an end before the time or the runs are over, or never.
def test_timing_runs() -> None:
    def timed(times, seconds, runs):
        now, remaining = [0.0], list(times)

        def run():
            now[0] += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        settings = Settings(seconds=seconds, runs=runs, threads=1, cuda_graph=False)
        return time_runs(run, settings, 1, clock=lambda: now[0])

    found = timed([5.0, 1.0, 1.0, 0.5], 3, 10)
    assert (found.warmup_runs, found.runs, found.max_ms) == (3, 10, 500)
    assert timed([0.5], 30, 10).runs == 60
    assert timed([20.0], 90, 10).runs == 5
    found = timed([20.0], 3, 100)
    assert (found.runs, found.warmup_runs) == (3, 1)


# Bugs caught: images/s by the mean of the latencies, a p99 of few runs.
def test_figures_of_samples() -> None:
    runs = np.random.default_rng(0).gamma(9, 1, 600)
    found = timing_of(runs, warmup_runs=8, batch=8)
    assert (found.runs, found.warmup_runs, found.p99_ms) == (600, 8, None)
    assert found.images_per_second == pytest.approx(8000 / np.median(runs))
    assert found.p95_ms == pytest.approx(np.percentile(runs, 95))
    assert found.variation == pytest.approx(np.std(runs, ddof=1) / np.mean(runs))


@pytest.mark.parametrize(
    ("seconds", "runs", "spread", "observed", "marks"),
    [
        (3.1, 100, 0.05, {"others_cpu_share": 0.05}, []),
        (2.9, 100, 0.05, {}, ["short"]),
        (3.1, 99, 0.05, {}, ["short"]),
        (3.1, 100, 0.2, {}, ["unstable"]),
        (3.1, 100, 0.05, {"others_cpu_share": 0.3, "gpu_throttling": "power cap"}, ["busy", "throttled"]),
    ],
)
def test_marks(seconds, runs, spread, observed, marks) -> None:
    times = 1000 * seconds / runs * (1 + spread * np.where(np.arange(runs) % 2, 1, -1))
    cell = CELL.model_copy(update={"host": timing_of(times, warmup_runs=1, batch=1), **observed})
    assert [mark.split(",")[0] for mark in marks_of(cell)] == marks
