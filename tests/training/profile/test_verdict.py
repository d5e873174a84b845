"""The conclusion from given times."""

import pytest

from swav_tf.training.profile.verdict import Loop, verdict
from tests.swav_models import tiny_recipe


def loop(loop_ms=100.0, wait_ms=0.0, step_ms=99.0, on_gpu=True) -> Loop:
    return Loop(loop_ms, wait_ms, step_ms, on_gpu)


SLOW_INPUT = loop(wait_ms=42.0, step_ms=57.0)
HALF = {"train__precision": "mixed_float16"}


@pytest.mark.parametrize(
    ("times", "changes", "bound", "words"),
    [
        # The GPU computes more than half of the time, but what was made ahead is used up: the input is the limit.
        (SLOW_INPUT, {"data__processes": 8}, "input", ["42 %", "About 15 cores are needed and 8"]),
        (SLOW_INPUT, {"data__threads": 4}, "input", ["-o data.processes=8 (now 4 threads of one process"]),
        (SLOW_INPUT, {"data__processes": 2}, "input", ["-o data.processes=8 (now 2 processes"]),
        (loop(), HALF, "device", ["99 %", "more or faster GPUs"]),
        (loop(), {}, "device", ["mixed_float16"]),
        (loop(), {**HALF, "train__accumulation_steps": 4}, "device", ["accumulation_steps"]),
        (loop(step_ms=40.0), {}, "host", ["60 %", "larger train.batch_size"]),
        # On a CPU, crops take cores from the step even where nothing waits for them.
        (loop(step_ms=40.0, on_gpu=False), {}, "input", ["60 %", "share 8 cores"]),
        (loop(step_ms=97.0, on_gpu=False), {}, "device", ["97 %", "a GPU, or"]),
    ],
)
def test_the_bound_and_its_remedy(times, changes, bound, words):
    recipe = tiny_recipe(**{"train__batch_size": 120, **changes})
    found = verdict(times, recipe, cores=8, cpu_ms_image=7.0, replicas=1)
    assert found.bound == bound
    assert found.sentence.startswith(f"{bound.capitalize()}-bound: ")
    for word in words:
        assert word in found.sentence
    assert 0 <= found.share <= 1


def test_replicas_communicate_too():
    found = verdict(loop(), tiny_recipe(), cores=8, cpu_ms_image=7.0, replicas=8)
    assert "compute and communicate (`swav-tf plan` estimates how much) for 99 %" in found.sentence


@pytest.mark.parametrize("times", [loop(), loop(wait_ms=30, step_ms=60), loop(100, 5, 80, False)])
def test_the_parts_add_up_to_the_loop(times):
    assert times.input_ms + times.host_ms + times.device_ms == pytest.approx(100)
