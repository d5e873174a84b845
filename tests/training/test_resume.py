"""Resumed equals uninterrupted, in processes that really die."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swav_tf.recipe_files import save_recipe
from swav_tf.training.checkpoint import CheckpointStore
from tests.swav_models import tiny_recipe

SCRIPT = Path(__file__).with_name("run_pretrain.py")


def start(recipe_file, run_dir):
    return subprocess.Popen([sys.executable, SCRIPT, recipe_file, run_dir], stderr=subprocess.PIPE, text=True)


def lines(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(process, run_dir, count):
    while len(lines(run_dir)) < count and process.poll() is None:
        time.sleep(0.002)


def final(run_dir):
    return CheckpointStore(run_dir / "checkpoints", kind="pretrain").newest()[0]


def metrics(run_dir):
    clocks = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines(run_dir)]


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
    save_recipe(every_quarter_second(), tmp_path / "recipe.yaml")
    undisturbed = start(tmp_path / "recipe.yaml", tmp_path / "a")
    assert undisturbed.wait(timeout=200) == 0, undisturbed.stderr.read()
    whole = len(lines(tmp_path / "a"))
    draw = random.Random(20)
    for share in (0.2, 0.5, 0.8):
        process = start(tmp_path / "recipe.yaml", tmp_path / "b")
        wait_for_lines(process, tmp_path / "b", int(whole * (share + draw.uniform(-0.1, 0.1))))
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(tmp_path / "recipe.yaml", tmp_path / "b")
    assert last.wait(timeout=200) == 0, last.stderr.read()
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["resumed_from_step"] > 0
    one, other = final(tmp_path / "a"), final(tmp_path / "b")
    assert one.step == other.step
    assert one.facts["position"] == other.facts["position"]
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name], err_msg=name)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


# Bugs caught: a signal that loses the step, a wrong exit code, a run that does not go on.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_mid_epoch_and_stops(tmp_path, number, code):
    save_recipe(tiny_recipe(train__batch_size=32), tmp_path / "recipe.yaml")
    process = start(tmp_path / "recipe.yaml", tmp_path / "run")
    wait_for_lines(process, tmp_path / "run", 5)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    message = process.stderr.read()
    assert f"Stopped by {signal.Signals(number).name} after step" in message
    checkpoint = final(tmp_path / "run")
    assert checkpoint.step >= 5
    assert checkpoint.step % 44 != 0
    assert len(lines(tmp_path / "run")) >= checkpoint.step


# Bug caught: a signal that asks for a checkpoint and ends the run.
def test_sigusr1_writes_a_checkpoint_and_goes_on(tmp_path):
    save_recipe(tiny_recipe(train__batch_size=32, checkpoint__keep_last=9), tmp_path / "recipe.yaml")
    process = start(tmp_path / "recipe.yaml", tmp_path / "run")
    wait_for_lines(process, tmp_path / "run", 5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    steps = CheckpointStore(tmp_path / "run" / "checkpoints", kind="pretrain").steps()
    assert len(steps) == 2
    assert steps[0] < steps[1] == 88
