"""What a profile concludes from times that are given, and the search for a batch that fits."""

import math

import pytest

from swav_tf.training.profile.largest_batch import PRECISION, estimated_largest, largest_fitting
from swav_tf.training.profile.timing import timing_of
from swav_tf.training.profile.verdict import Facts, Loop, verdict

FACTS = Facts(
    threads=8,
    cores=8,
    cpu_ms_image=7.0,
    step_images_per_second=2000.0,
    on_gpu=True,
    replicas=1,
    synchronised=True,
    accumulation_steps=1,
    precision="mixed_float16",
)


def facts(**changes) -> Facts:
    return Facts(**{**vars(FACTS), **changes})


def loop(loop_ms=100.0, wait_ms=0.0, step_ms=99.0, launch_ms=20.0, communication_ms=0.0) -> Loop:
    return Loop(loop_ms, wait_ms, step_ms, launch_ms, communication_ms)


@pytest.mark.parametrize(
    ("times", "known", "bound", "told"),
    [
        # The GPU computes more than half of the time, but what was ahead is used up: the input sets the pace.
        (
            loop(wait_ms=42.0, step_ms=57.0),
            {"processes": 8},
            "input",
            ["42 %", "about 14 cores would keep up"],
        ),
        (
            loop(wait_ms=42.0, step_ms=57.0),
            {},
            "input",
            ["-o data.processes=8 (now 8 threads of one process"],
        ),
        (
            loop(wait_ms=42.0, step_ms=57.0),
            {"processes": 2},
            "input",
            ["-o data.processes=8 (now 2 processes"],
        ),
        (loop(), {}, "device", ["99 %", "more or faster GPUs"]),
        (loop(), {"precision": "float32"}, "device", ["mixed_float16"]),
        (loop(), {"accumulation_steps": 4}, "device", ["accumulation_steps"]),
        # The step ends no later than its launch: the GPU had to wait for the host.
        (loop(launch_ms=95.0), {}, "host", ["larger train.batch_size"]),
        (loop(step_ms=40.0), {}, "host", ["60 %"]),
        (loop(communication_ms=55.0), {}, "communication", ["55 %", "batch_norm.synchronised=false"]),
        (loop(communication_ms=55.0), {"synchronised": False}, "communication", ["faster link"]),
        # On a CPU, crops take cores from the step even where nobody waits for them.
        (loop(step_ms=40.0, launch_ms=None), {"on_gpu": False}, "input", ["60 %", "share 8 core(s)"]),
        (loop(step_ms=97.0, launch_ms=None), {"on_gpu": False}, "device", ["97 %", "a GPU, or"]),
    ],
)
def test_the_bound_and_its_remedy(times, known, bound, told):
    found = verdict(times, facts(**known))
    assert found.bound == bound
    assert found.sentence.startswith(f"{bound} bound: ")
    for words in told:
        assert words in found.sentence
    assert 0 <= found.share <= 1


# The parts of a loop are all of it, whatever is measured.
@pytest.mark.parametrize("times", [loop(), loop(wait_ms=30, step_ms=60), loop(100, 5, 80, 78, 10)])
def test_the_parts_are_the_whole(times):
    assert times.input_ms + times.host_ms + times.communication_ms + times.device_ms == pytest.approx(100)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 63, 64, 65, 100, 1000, 5000])
@pytest.mark.parametrize("start", [1, 16, 64])
def test_the_largest_that_fits(limit, start):
    tried = []

    def fits(number: int) -> bool:
        assert number not in tried, "each costs minutes"
        tried.append(number)
        return number <= limit

    found = largest_fitting(fits, start=start, most=4096)
    limit = min(limit, 4096)
    assert found <= limit
    assert limit - found <= max(0, found / PRECISION)
    assert len(tried) <= 2 * math.log2(4096)


def test_a_line_through_two_peaks():
    # 500 MB and 20 an image; 2000 MB are free: 75 images.
    assert estimated_largest((8, 660.0), (16, 820.0), available_mb=2000.0) == 75
    assert estimated_largest((8, 660.0), (16, 820.0), available_mb=400.0) == 0
    with pytest.raises(ValueError, match="must grow"):
        estimated_largest((8, 660.0), (16, 650.0), available_mb=2000.0)


def test_means_and_spread_of_times():
    timing = timing_of([0.1, 0.2, 0.3, 0.4, 0.5], cpu=3.0)
    assert (timing.ms, timing.cpu_ms) == (pytest.approx(300), pytest.approx(600))
    assert timing.spread == pytest.approx(0.15 / 0.3)  # quartiles 0.15 and 0.45
