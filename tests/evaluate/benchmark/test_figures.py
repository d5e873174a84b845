"""Statistics of measured times, and the marks of figures that deserve less trust."""

import numpy as np
import pytest

from evaluate.benchmark.figures import (
    block_means,
    cell_of,
    marks_of,
    percentile_ms,
    relative_error,
    runs_needed,
    timing_of,
)
from evaluate.benchmark.schema import Cell, Settings
from evaluate.benchmark.worker import Answer, Samples, time_runs

CELL = Cell(model="m", runner="ort-cuda", precision="fp32", batch=1, status="ok")


def timing(ms, runs=100, batch=1):
    return timing_of([Samples(ms=(ms,) * runs, warmup_runs=1)], batch)


# Bug caught: a p99 of a hundred runs, which is their maximum.
@pytest.mark.parametrize(("percentile", "needed"), [(50, 20), (90, 100), (95, 200), (99, 1000)])
def test_a_percentile_takes_ten_samples_beyond_it(percentile, needed) -> None:
    assert runs_needed(percentile) == needed
    samples = np.random.default_rng(percentile).gamma(2, 3, needed)
    assert percentile_ms(list(samples[1:]), percentile) is None
    found = percentile_ms(list(samples), percentile)
    assert found == pytest.approx(np.percentile(samples, percentile))
    assert np.sum(samples > found) >= 10


def test_blocks_are_consecutive_and_contain_every_run() -> None:
    samples = list(np.random.default_rng(0).normal(10, 1, 103))
    blocks = block_means(samples)
    assert len(blocks) == 20
    assert blocks[0] == pytest.approx(np.mean(samples[:6]))  # 103 = 3 of 6 and 17 of 5
    assert blocks[-1] == pytest.approx(np.mean(samples[-5:]))
    assert block_means([1.0, 2.0]) == [1.0, 2.0]


# Bug caught: an error smaller than that of repeated measurements, so that chance looks like a difference.
def test_the_error_is_that_of_repeated_measurements() -> None:
    draw = np.random.default_rng(3)

    def rounds() -> list[list[float]]:
        """Three processes, each off by 3 %, of 20 blocks that vary by 5 %."""
        return [list(10 * (1 + draw.normal(0, 0.03)) * (1 + draw.normal(0, 0.05, 20))) for _ in range(3)]

    many = [rounds() for _ in range(400)]
    truth = np.std([np.median([np.median(blocks) for blocks in each]) for each in many]) / 10
    estimate = np.sqrt(np.mean([relative_error(each, between=0.5) ** 2 for each in many]))
    assert truth * 0.85 <= estimate <= truth * 1.3
    steady = [[10.0] * 20]  # a single process: the difference between processes is assumed
    assert relative_error(steady, between=0.02) == pytest.approx(0.02)
    assert relative_error(steady * 2, between=0.02) == 0


# Bugs caught: warm-up runs among the samples, an end before the time or the runs are over, or never.
def test_timing_runs() -> None:
    def timed(times, seconds, runs, max_seconds):
        now, remaining = [0.0], list(times)

        def run():
            now[0] += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        settings = Settings(
            seconds=seconds, runs=runs, max_seconds=max_seconds, rounds=1, threads=1, cuda_graph=False
        )
        return time_runs(run, settings, clock=lambda: now[0])

    samples = timed([5.0, 1.0, 1.0, 0.5], 3, 10, 100)
    assert (samples.warmup_runs, samples.ms) == (3, (500.0,) * 10)
    assert len(timed([0.5], 30, 10, 100).ms) == 60
    samples = timed([20.0], 3, 100, 60)
    assert (len(samples.ms), samples.warmup_runs) == (3, 1)


# Bugs caught: images/s by the mean of the latencies, a p99 of few runs, rounds mixed up.
def test_figures_of_samples() -> None:
    draw = np.random.default_rng(0)
    rounds = [Samples(ms=tuple(draw.gamma(9, size, 300)), warmup_runs=4) for size in (1.0, 1.1)]
    found = timing_of(rounds, 8)
    runs = np.concatenate([samples.ms for samples in rounds])
    assert (found.runs, found.warmup_runs, found.p99_ms) == (600, 8, None)
    assert found.images_per_second == pytest.approx(8000 / np.median(runs))
    assert found.p95_ms == pytest.approx(np.percentile(runs, 95))
    assert found.variation == pytest.approx(np.std(runs, ddof=1) / np.mean(runs))
    assert [len(blocks) for blocks in found.rounds_ms] == [20, 20]
    assert timing_of([], 8) is None


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
    host = timing_of([Samples(ms=tuple(times), warmup_runs=1)], 1)
    cell = CELL.model_copy(update={"host": host, **observed})
    assert [mark.split(",")[0] for mark in marks_of(cell)] == marks


# Bugs caught: the load of a quiet round, the peak of another process.
def test_a_cell_has_the_worst_conditions_of_its_rounds() -> None:
    samples = Samples(ms=(10.0,) * 400, warmup_runs=1)
    quiet = Answer(
        host=samples, load=0.5, others_cpu_share=0.0, host_peak_mib=100.0, notes=("no CUDA graph",)
    )
    busy = quiet.model_copy(update={"load": 3.0, "others_cpu_share": 0.5, "host_peak_mib": 90.0})
    cell = cell_of(CELL, [quiet, busy])
    assert (cell.load, cell.others_cpu_share, cell.host_peak_mib) == (3.0, 0.5, 100.0)
    assert cell.marks == ("no CUDA graph", "busy, other processes used 50 % of the CPU")
    failed = cell_of(CELL, [quiet, Answer(error="it broke")])
    assert (failed.status, failed.reason, failed.host) == ("failed", "it broke", None)
