"""A run that is killed and stopped equals one that is not, in processes that really die."""

import json
import signal

import pytest

from swav_tf.recipe.files import save_recipe
from tests.swav_models import tiny_recipe
from tests.training.runs import (
    assert_same_bits,
    finish,
    lines,
    metrics,
    newest,
    start,
    wait_until,
)


# Bugs caught: state that is missing from a checkpoint (momentum, queue, step, order of images, running means), images
# that come twice after a mid-epoch resume, metrics written twice; a signal that loses the step or gives a wrong exit
# code; a request for a checkpoint that ends the run.
@pytest.mark.multiprocess
def test_killed_and_stopped_ends_with_the_same_bits(tmp_path):
    recipe, a, b = tmp_path / "recipe.yaml", tmp_path / "a", tmp_path / "b"
    save_recipe(
        tiny_recipe(
            train__batch_size=32,  # 44 steps per epoch
            method__queue={"length": 128},
            method__prototypes_frozen_steps=10,
            checkpoint__every_minutes=0.004,
        ),
        recipe,
    )
    straight = start(recipe, a)

    def run_until_step(step):
        process = start(recipe, b)
        wait_until(lambda: any(line["step"] >= step for line in lines(b)), process)
        return process

    killed = run_until_step(20)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    process = run_until_step(30)
    before = newest(b).step
    process.send_signal(signal.SIGUSR1)  # writes a checkpoint and continues
    wait_until(lambda: newest(b).step > before, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Stopped by SIGINT after step" in process.errors
    stopped_at = newest(b).step
    assert stopped_at > before

    finish(straight, start(recipe, b))
    assert json.loads((b / "summary.json").read_text())["resumed_from_step"] == stopped_at
    assert_same_bits(newest(a), newest(b))
    assert metrics(a) == metrics(b)
