"""Two worker processes on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swav_tf.recipe_files import save_recipe
from swav_tf.training.checkpoint import CheckpointStore
from swav_tf.training.rendezvous import free_port
from tests.swav_models import tiny_recipe

SCRIPT = Path(__file__).with_name("run_pretrain.py")
# A small learning rate: rounding, which differs between topologies, is then not amplified step by step.
RECIPE = {
    "train__batch_size": 64,
    "train__epochs": 1,
    "method__queue": {"length": 128},
    "optimizer__peak_learning_rate": 0.2,
}


def start(recipe, run_dir, *cluster, **environment):
    return subprocess.Popen(
        [sys.executable, SCRIPT, recipe, run_dir, *map(str, cluster)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(processes, code=0):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == code, errors[-3000:]


def final(run_dir):
    return CheckpointStore(run_dir / "checkpoints", kind="pretrain").newest()[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the same recipe."""
    folder = tmp_path_factory.mktemp("alone")
    save_recipe(tiny_recipe(**RECIPE), folder / "recipe.yaml")
    finish([start(folder / "recipe.yaml", folder / "run")])
    return final(folder / "run")


def assert_close(one, other):
    assert one.facts["position"]["step"] == other.facts["position"]["step"] == 22
    assert one.facts["position"]["sums"] == pytest.approx(other.facts["position"]["sums"], rel=2e-3)
    for name, value in one.arrays.items():
        if "head/hidden/bias" in name:
            continue  # no gradient but rounding, before BN
        error = np.linalg.norm(value - other.arrays[name]) / max(np.linalg.norm(value), 1e-6)
        # What starts at zero, as momentum does, is all rounding and updates: a looser bound.
        assert error < (0.1 if name.startswith("momentum/") else 0.01), (
            f"{name}: relative difference {error:.2e}"
        )


# Bugs caught: shares that overlap, sums over one worker, workers whose weights drift apart, a worker
# that is no chief and writes, a rendezvous that mixes up ranks.
def test_two_workers_equal_one_process(tmp_path, alone):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    master = f"127.0.0.1:{free_port()}"
    # Each worker is given a folder of its own, to see who writes what.
    folders = [tmp_path / "chief", tmp_path / "other"]
    processes = [
        start(
            tmp_path / "recipe.yaml",
            folder,
            2,
            rank,
            master,
            SWAV_TF_TEST_WEIGHTS=str(tmp_path / f"{rank}.npz"),
        )
        for rank, folder in enumerate(folders)
    ]
    finish(processes)
    assert_close(alone, final(folders[0]))
    assert not folders[1].exists()
    weights = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert set(weights[0]) == set(weights[1])
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


# Bug caught: 'finite?' decided by each worker for itself: one skips, the other steps, and they drift apart or hang.
def test_a_non_finite_gradient_on_one_worker_skips_the_step_on_both(tmp_path):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    master = f"127.0.0.1:{free_port()}"
    finish(
        [
            start(
                tmp_path / "recipe.yaml",
                tmp_path / f"run{rank}",
                *(2, rank, master),
                SWAV_TF_TEST_WEIGHTS=str(tmp_path / f"{rank}.npz"),
                **({"SWAV_TF_TEST_POISONED_STEP": "4"} if rank == 1 else {}),
            )
            for rank in range(2)
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / "run0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("finite") == 0] == [5]
    weights = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for name in weights[0]:
        assert np.all(np.isfinite(weights[0][name]))
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


# Bugs caught: a signal that stops one worker and hangs the other; a run that cannot go on with fewer workers.
def test_a_signal_to_one_worker_stops_all_at_one_step_and_one_process_goes_on(tmp_path, alone):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    run = tmp_path / "run"
    processes = [
        start(
            tmp_path / "recipe.yaml",
            run,
            TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}),
        )
        for rank in range(2)
    ]
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 6:
        time.sleep(0.005)
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()
    processes[1].send_signal(signal.SIGTERM)  # not the chief
    finish(processes[1:], code=143)
    finish(processes[:1], code=1)
    assert 6 <= final(run).step < 22
    finish([start(tmp_path / "recipe.yaml", run)])
    assert_close(alone, final(run))
