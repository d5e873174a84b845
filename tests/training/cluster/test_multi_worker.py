"""Two worker processes on loopback."""

import json
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from swav_tf.recipe.files import save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from tests.ports import reserve_port
from tests.swav_models import tiny_recipe
from tests.training.runs import PRETRAIN, assert_same_run, finish, lines, newest, start, wait_until

# A small learning rate: rounding, which differs between topologies, is then not amplified step by step.
RECIPE = {
    "train__batch_size": 64,
    "train__epochs": 1,
    "method__queue": {"length": 128},
    "optimizer__peak_learning_rate": 0.2,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the same recipe."""
    folder = tmp_path_factory.mktemp("alone")
    save_recipe(tiny_recipe(**RECIPE), folder / "recipe.yaml")
    finish(start(PRETRAIN, folder / "recipe.yaml", folder / "run"))
    return newest(folder / "run")


# Bugs caught: shares that overlap, sums over one worker, workers whose weights drift apart, a worker
# that is no chief and writes, a rendezvous that mixes up ranks.
def test_two_workers_equal_one_process(tmp_path, alone):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    master = f"127.0.0.1:{reserve_port()}"
    # Each worker is given a folder of its own, to see who writes what.
    folders = [tmp_path / "chief", tmp_path / "other"]
    processes = [
        start(
            PRETRAIN,
            tmp_path / "recipe.yaml",
            folder,
            *(2, rank, master),
            SWAV_TF_TEST_WEIGHTS=str(tmp_path / f"{rank}.npz"),
        )
        for rank, folder in enumerate(folders)
    ]
    finish(*processes)
    assert_same_run(alone, newest(folders[0]))
    assert not folders[1].exists()
    weights = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert set(weights[0]) == set(weights[1])
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


# Bug caught: 'finite?' decided by each worker for itself: one skips, the other steps, and they drift apart or hang.
def test_a_non_finite_gradient_on_one_worker_skips_the_step_on_both(tmp_path):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    master = f"127.0.0.1:{reserve_port()}"
    finish(
        *(
            start(
                PRETRAIN,
                tmp_path / "recipe.yaml",
                tmp_path / f"run{rank}",
                *(2, rank, master),
                SWAV_TF_TEST_WEIGHTS=str(tmp_path / f"{rank}.npz"),
                **({"SWAV_TF_TEST_POISONED_STEP": "4"} if rank == 1 else {}),
            )
            for rank in range(2)
        )
    )
    assert [line["step"] for line in lines(tmp_path / "run0") if line.get("finite") == 0] == [5]
    weights = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for name in weights[0]:
        assert np.all(np.isfinite(weights[0][name]))
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


def start_cluster(folder, workers):
    """All workers of a cluster that TF_CONFIG describes, in one run folder."""
    addresses = [f"127.0.0.1:{reserve_port()}" for _ in range(workers)]
    return [
        start(
            PRETRAIN,
            folder / "recipe.yaml",
            folder / "run",
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            ),
        )
        for rank in range(workers)
    ]


def resumed_from(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["resumed_from_step"]


def wait_for_step(run_dir, step, processes):
    wait_until(lambda: any(line["step"] >= step for line in lines(run_dir)), *processes)


# Bugs caught: a signal that stops one worker and hangs the other; an exit code that a scheduler takes for a
# failure of those that were not signalled; a run that cannot go on with more workers, or with fewer.
@pytest.mark.timeout(900)  # seven processes, each of which starts TensorFlow
def test_a_signal_to_one_worker_stops_all_at_one_step_and_the_run_goes_on_with_more_or_fewer(tmp_path, alone):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    stopped_at = []
    for workers, signalled, step in ((2, 1, 4), (4, 2, 10)):
        processes = start_cluster(tmp_path, workers)
        wait_for_step(tmp_path / "run", step, processes)
        processes[signalled].send_signal(signal.SIGTERM)  # not the chief
        finish(*processes, code=143)
        stopped_at.append(newest(tmp_path / "run").step)
    assert 4 <= stopped_at[0] < stopped_at[1] < 22
    finish(start(PRETRAIN, tmp_path / "recipe.yaml", tmp_path / "run"))
    assert resumed_from(tmp_path / "run") == stopped_at[1]  # it went on, and did not start anew
    assert_same_run(alone, newest(tmp_path / "run"))


# Bugs caught: a batch that is changed without a word to suit three workers; an advice that a begun run cannot follow.
def test_a_batch_that_the_workers_cannot_share_is_refused_by_all(tmp_path):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    for process in start_cluster(tmp_path, 3):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 2
        assert "64 images cannot be shared equally by 3 replica(s)" in errors
        assert "A run that has begun keeps its batch: give it 2 or 4 replica(s)" in errors


# Bugs caught: workers that wait for ever for one that died or hangs; a loss without a name; a checkpoint that a loss
# spoils; a restarted job that ends with other weights.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "victim", "message"),
    [
        (signal.SIGKILL, 0, r"Worker 0 \(\S+, process {pid}\) is gone"),
        (signal.SIGSTOP, 1, r"Worker 1 \(\S+, process {pid}\) has been silent for 5 s"),
    ],
    ids=["chief killed", "other stopped"],
)
def test_the_loss_of_a_worker_ends_the_others_and_the_same_command_goes_on(
    tmp_path, alone, how, victim, message
):
    save_recipe(tiny_recipe(**RECIPE, train__worker_timeout_seconds=5), tmp_path / "recipe.yaml")
    run, processes = tmp_path / "run", start_cluster(tmp_path, 2)
    wait_for_step(tmp_path / "run", 4, processes)
    processes[1].send_signal(signal.SIGUSR1)
    wait_until(lambda: CheckpointStore(run / "checkpoints", kind="pretrain").steps(), *processes)
    processes[victim].send_signal(how)
    survivor = processes[1 - victim]
    _, errors = survivor.communicate(timeout=240)
    assert survivor.returncode == 75
    assert re.search(message.format(pid=processes[victim].pid), errors), errors[-2000:]
    assert "The last checkpoint is kept" in errors
    processes[victim].send_signal(signal.SIGCONT)  # one that was only stopped must not go on alone
    processes[victim].communicate(timeout=240)
    assert processes[victim].returncode == (-signal.SIGKILL if how == signal.SIGKILL else 75)
    kept = newest(run).step
    assert 4 <= kept < 22
    finish(*start_cluster(tmp_path, 2))
    assert resumed_from(run) == kept  # it went on, and did not start anew
    assert_same_run(alone, newest(run))


@pytest.fixture
def two_machines():
    """Two network namespaces, as two machines with a cable between them: their names and their addresses."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    names = [f"swav{os.getpid()}{side}" for side in "ab"]
    addresses = ["10.213.77.1", "10.213.77.2"]
    try:
        for name in names:
            if ip("netns", "add", name).returncode:
                pytest.skip("this system gives no network namespaces")
        ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                assert not ip("-n", name, "link", "set", device, "up").returncode
        yield names, addresses, lambda: ip("-n", names[0], "link", "set", "cable", "down")
    finally:
        for name in names:
            ip("netns", "delete", name)


# Bugs caught: a cut cable, which closes no connection, that both sides wait behind for ever.
def test_both_sides_of_a_lost_network_name_each_other(tmp_path, two_machines):
    names, addresses, cut = two_machines
    save_recipe(tiny_recipe(**RECIPE, train__worker_timeout_seconds=5), tmp_path / "recipe.yaml")
    processes = [
        start(
            PRETRAIN,
            tmp_path / "recipe.yaml",
            tmp_path / "run",
            *(2, rank, f"{addresses[0]}:9000"),
            before=["ip", "netns", "exec", name],
        )
        for rank, name in enumerate(names)
    ]
    wait_for_step(tmp_path / "run", 4, processes)
    cut()
    for rank, process in enumerate(processes):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 75
        assert f"Worker {1 - rank} (" in errors
        assert "has been silent for 5 s" in errors
