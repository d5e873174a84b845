"""Resumed equals uninterrupted, in processes that really die."""

import json
import random
import signal

import pytest

from swav_tf.recipe.files import save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from tests.swav_models import tiny_recipe
from tests.training.runs import (
    PRETRAIN,
    assert_same_bits,
    finish,
    lines,
    metrics,
    newest,
    start,
    wait_until,
)


def every_quarter_second(**changes):
    return tiny_recipe(
        train__batch_size=32,
        method__queue={"length": 128},
        method__prototypes_frozen_steps=10,
        checkpoint__every_minutes=0.004,
        **changes,
    )


# Bugs caught: state that is missing from a checkpoint (momentum, queue, step, order of images, running
# means), data that comes twice after a mid-epoch resume, metrics written twice.
def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    recipe, (a, b) = tmp_path / "recipe.yaml", (tmp_path / "a", tmp_path / "b")
    save_recipe(every_quarter_second(), recipe)
    finish(start(PRETRAIN, recipe, a))
    whole, draw = len(lines(a)), random.Random(20)
    for share in (0.2, 0.5, 0.8):
        process, count = start(PRETRAIN, recipe, b), int(whole * (share + draw.uniform(-0.1, 0.1)))
        wait_until(lambda count=count: len(lines(b)) >= count, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(PRETRAIN, recipe, b))
    assert json.loads((b / "summary.json").read_text())["resumed_from_step"] > 0
    assert_same_bits(newest(a), newest(b))
    assert metrics(a) == metrics(b)


# Bugs caught: a signal that loses the step, a wrong exit code, a run that does not go on.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_mid_epoch_and_stops(tmp_path, number, code):
    save_recipe(tiny_recipe(train__batch_size=32), tmp_path / "recipe.yaml")
    process = start(PRETRAIN, tmp_path / "recipe.yaml", tmp_path / "run")
    wait_until(lambda: len(lines(tmp_path / "run")) >= 5, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    message = process.stderr.read()
    assert f"Stopped by {signal.Signals(number).name} after step" in message
    checkpoint = newest(tmp_path / "run")
    assert checkpoint.step >= 5
    assert checkpoint.step % 44 != 0
    assert len(lines(tmp_path / "run")) >= checkpoint.step


# Bug caught: a signal that asks for a checkpoint and ends the run.
def test_sigusr1_writes_a_checkpoint_and_goes_on(tmp_path):
    save_recipe(tiny_recipe(train__batch_size=32, checkpoint__keep_last=9), tmp_path / "recipe.yaml")
    process = start(PRETRAIN, tmp_path / "recipe.yaml", tmp_path / "run")
    wait_until(lambda: len(lines(tmp_path / "run")) >= 5, process)
    process.send_signal(signal.SIGUSR1)
    finish(process)
    steps = CheckpointStore(tmp_path / "run" / "checkpoints", kind="pretrain").steps()
    assert len(steps) == 2
    assert steps[0] < steps[1] == 88
