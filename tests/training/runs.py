"""Helpers for tests of complete runs: processes, metrics, checkpoints, and when two runs are equal."""

import functools
import json
import multiprocessing.forkserver
import os
import tempfile
import time

import keras
import numpy as np
import pytest

from swav_tf.runs.checkpoint import CheckpointStore
from tests.training.run_job import run

CLOCKS = ("time", "images_per_second")


@functools.cache
def server():
    """Start a process that imports TensorFlow once, and is forked for each job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.run_job"])
    # Of libraries that start threads at their import: a process with several cannot be forked safely.
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in one_thread.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


class Job:
    """A job in a process of its own."""

    def __init__(self, arguments, environment):
        self._errors = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115, it is removed with the job
        arguments = ([*map(str, arguments)], environment, self._errors.name)
        self._process = server().Process(target=run, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def errors(self):
        self._errors.seek(0)
        return self._errors.read()

    @property
    def code(self):
        """Return its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, seconds=240):
        """Return its exit code once it has ended."""
        self._process.join(seconds)
        assert self.code is not None, f"process {self.pid} does not end"
        return self.code

    def send_signal(self, number):
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()
        self._process.join()


def start(*arguments, **environment):
    return Job(arguments, {**os.environ, **environment})


def finish(*jobs, code=0):
    """Wait until all end; fail and kill the others at the first that ends with another code."""
    deadline = time.monotonic() + 240
    try:
        while any(job.code is None for job in jobs):
            time.sleep(0.05)
            assert time.monotonic() < deadline, "a job does not end"
            assert all(job.code in (None, code) for job in jobs), _errors(jobs)
        assert all(job.code == code for job in jobs), _errors(jobs)
    finally:
        for job in jobs:
            job.kill()


def _errors(jobs):
    return "\n".join(job.errors[-3000:] for job in jobs)


def lines(run_dir, kind=None):
    """Return the complete lines of metrics.jsonl so far, of one kind or all."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in text if line.endswith("\n")]
    return [line for line in found if kind in (None, line["kind"])]


def metrics(run_dir):
    """Return the lines without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines(run_dir)]


def wait_until(condition, *jobs):
    """Wait until the condition holds, while all jobs run."""
    while not condition():
        time.sleep(0.005)
        assert all(job.code is None for job in jobs), _errors(jobs)


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
