"""Helpers for tests of complete runs: processes, metrics, checkpoints, and when two runs are equal."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from swav_tf.runs.checkpoint import CheckpointStore

SCRIPT = Path(__file__).with_name("run_job.py")
CLOCKS = ("time", "images_per_second")


def start(*arguments, before=(), **environment):
    """Start a job in a process; `before` is a command that runs it."""
    return subprocess.Popen(
        [*before, sys.executable, SCRIPT, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(*processes, code=0):
    """Wait until all end; fail and kill the others at the first that ends with another code."""
    running, deadline = list(processes), time.monotonic() + 240
    try:
        while running:
            for process in tuple(running):
                try:
                    _, errors = process.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    assert time.monotonic() < deadline, f"process {process.pid} does not end"
                    continue
                running.remove(process)
                assert process.returncode == code, errors[-3000:]
    finally:
        for process in running:
            process.kill()


def lines(run_dir, kind=None):
    """Return the complete lines of metrics.jsonl so far, of one kind or all."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in text if line.endswith("\n")]
    return [line for line in found if kind in (None, line["kind"])]


def metrics(run_dir):
    """Return the lines without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines(run_dir)]


def wait_until(condition, *processes):
    """Wait until the condition holds, while all processes run."""
    while not condition():
        time.sleep(0.005)
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()


def newest(run_dir, kind="pretrain"):
    return CheckpointStore(run_dir / "checkpoints", kind=kind).newest()[0]


def assert_same_bits(one, other):
    assert one.step == other.step
    assert one.facts["position"] == other.facts["position"]
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name], err_msg=name)


def assert_equal_but_for_rounding(one, other):
    """Compare arrays within 1 % of their norm; momentum, which starts at zero, within 10 %."""
    assert one.step == other.step
    assert one.arrays.keys() == other.arrays.keys()
    for name, value in one.arrays.items():
        if "head/hidden/bias" in name:
            continue  # before batch norm: its gradient is rounding alone
        error = np.linalg.norm(value - other.arrays[name]) / max(np.linalg.norm(value), 1e-6)
        assert error < (0.1 if name.startswith("momentum/") else 0.01), (
            f"{name}: relative difference {error:.2e}"
        )


def assert_same_run(one, other):
    """Compare the ends of two pretraining runs, the means of the last epoch included."""
    assert_equal_but_for_rounding(one, other)
    assert one.facts["position"]["sums"] == pytest.approx(other.facts["position"]["sums"], rel=2e-3)


class StopAfter(keras.callbacks.Callback):
    """Request a stop after some batches, as a signal does; the batch after them is the last."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.requests[0] = 1
