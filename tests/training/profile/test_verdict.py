"""The conclusion from given times."""

import pytest

from swav_tf.training.profile.verdict import Loop, verdict
from tests.swav_models import tiny_recipe


def loop(loop_ms=100.0, wait_ms=0.0, step_ms=99.0, launch_ms=20.0, communication_ms=0.0) -> Loop:
    return Loop(loop_ms, wait_ms, step_ms, launch_ms, communication_ms)


SLOW_INPUT = loop(wait_ms=42.0, step_ms=57.0)
HALF = {"train__precision": "mixed_float16"}


@pytest.mark.parametrize(
    ("times", "changes", "bound", "words"),
    [
        # The GPU computes more than half of the time, but what was made ahead is used up: the input is the limit.
        (SLOW_INPUT, {"data__processes": 8}, "input", ["42 %", "about 15 cores are needed and 8"]),
        (SLOW_INPUT, {"data__threads": 4}, "input", ["-o data.processes=8 (now 4 threads of one process"]),
        (SLOW_INPUT, {"data__processes": 2}, "input", ["-o data.processes=8 (now 2 processes"]),
        (loop(), HALF, "device", ["99 %", "more or faster GPUs"]),
        (loop(), {}, "device", ["mixed_float16"]),
        (loop(), {**HALF, "train__accumulation_steps": 4}, "device", ["accumulation_steps"]),
        # The step ends no later than its launch: the GPU had to wait for the host.
        (loop(launch_ms=95.0), {}, "host", ["larger train.batch_size"]),
        (loop(step_ms=40.0), {}, "host", ["60 %"]),
        (loop(communication_ms=55.0), {}, "communication", ["55 %", "batch_norm.synchronised=false"]),
        (
            loop(communication_ms=55.0),
            {"model__batch_norm": {"synchronised": False}},
            "communication",
            ["55 % of the time; more images"],
        ),
        # On a CPU, crops take cores from the step even where nothing waits for them.
        (loop(step_ms=40.0, launch_ms=None), {}, "input", ["60 %", "share 8 core(s)"]),
        (loop(step_ms=97.0, launch_ms=None), {}, "device", ["97 %", "a GPU, or"]),
    ],
)
def test_the_bound_and_its_remedy(times, changes, bound, words):
    recipe = tiny_recipe(**{"train__batch_size": 120, **changes})
    found = verdict(times, recipe, cores=8, cpu_ms_image=7.0)
    assert found.bound == bound
    assert found.sentence.startswith(f"{bound} bound: ")
    for word in words:
        assert word in found.sentence
    assert 0 <= found.share <= 1


@pytest.mark.parametrize("times", [loop(), loop(wait_ms=30, step_ms=60), loop(100, 5, 80, 78, 10)])
def test_the_parts_add_up_to_the_loop(times):
    assert times.input_ms + times.host_ms + times.communication_ms + times.device_ms == pytest.approx(100)
