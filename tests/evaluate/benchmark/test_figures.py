"""From runs to figures, and the marks of figures that deserve less trust."""

import numpy as np
import pytest

from evaluate.benchmark.figures import cell_of, marks_of, timing_of
from evaluate.benchmark.schema import Cell, Conditions
from evaluate.benchmark.worker import Answer, Samples, time_runs


class Clock:
    """Each run takes the next of some times."""

    def __init__(self, seconds):
        self.now, self.times, self.runs = 0.0, list(seconds), 0

    def __call__(self):
        return self.now

    def run(self):
        self.now += self.times[min(self.runs, len(self.times) - 1)]
        self.runs += 1


# Bugs caught: warm-up runs among the samples, an end before the time or the runs are over, or never.
def test_timing_runs() -> None:
    clock = Clock([5.0, 1.0, 1.0] + [0.5] * 50)
    samples, warmup = time_runs(clock.run, seconds=3, runs=10, max_seconds=100, clock=clock)
    assert warmup == 3
    assert samples == [500.0] * 10
    assert len(time_runs(clock.run, seconds=30, runs=10, max_seconds=100, clock=clock)[0]) == 60
    slow = Clock([20.0])
    samples, warmup = time_runs(slow.run, seconds=3, runs=100, max_seconds=60, clock=slow)
    assert (len(samples), warmup) == (3, 1)


# Bugs caught: images/s by the mean of the latencies, a p99 of few runs, rounds thrown together.
def test_figures_of_samples() -> None:
    draw = np.random.default_rng(0)
    rounds = [Samples(ms=tuple(draw.gamma(9, size, 300)), warmup_runs=4) for size in (1.0, 1.1)]
    timing = timing_of(rounds, 8)
    runs = np.concatenate([samples.ms for samples in rounds])
    assert (timing.runs, timing.warmup_runs) == (600, 8)
    assert timing.images_per_second == pytest.approx(8000 / np.median(runs))
    assert timing.p95_ms == pytest.approx(np.percentile(runs, 95))
    assert timing.p99_ms is None
    assert [len(blocks) for blocks in timing.rounds_ms] == [20, 20]
    assert timing_of([], 8) is None


@pytest.mark.parametrize(
    ("seconds", "runs", "spread", "conditions", "marks"),
    [
        (3.1, 100, 0.05, {"others_cpu_share": 0.05}, []),
        (2.9, 100, 0.05, {}, ["short"]),
        (3.1, 99, 0.05, {}, ["short"]),
        (3.1, 100, 0.2, {}, ["unstable"]),
        (3.1, 100, 0.05, {"others_cpu_share": 0.3, "gpu_throttling": "0x4"}, ["busy", "throttled"]),
    ],
)
def test_marks(seconds, runs, spread, conditions, marks) -> None:
    times = 1000 * seconds / runs * (1 + spread * np.where(np.arange(runs) % 2, 1, -1))
    timing = timing_of([Samples(ms=tuple(times), warmup_runs=1)], 1)
    cell = Cell(
        model="m", runner="ort-cpu", precision="fp32", batch=1, status="ok", host=timing,
        conditions=Conditions(**conditions),
    )  # fmt: skip
    assert [mark.split(",")[0] for mark in marks_of(cell)] == marks


def test_an_error_is_the_failure_of_its_cell() -> None:
    waiting = Cell(model="m", runner="ort-cpu", precision="fp32", batch=1, status="skipped", reason="")
    cell = cell_of(waiting, [Answer(error="it broke")])
    assert (cell.status, cell.reason) == ("failed", "it broke")
