"""Several worker processes on loopback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from swav_tf.recipe.files import save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.pretrain import pretrain
from swav_tf.training.rendezvous import ClusterAddress, meet
from tests.ports import reserve_port
from tests.swav_models import SMALL, tiny_recipe
from tests.training.runs import assert_same_run, finish, lines, newest, start, wait_until

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

# A small learning rate: rounding, which differs between topologies, is then not amplified step by step.
RECIPE = {
    "train__batch_size": 64,
    "train__epochs": 1,
    "method__queue": {"length": 128},
    "optimizer__peak_learning_rate": 0.2,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The last checkpoint of one process, this one."""
    folder = tmp_path_factory.mktemp("alone")
    pretrain(tiny_recipe(**RECIPE), run_dir=folder, quiet=True)
    return newest(folder)


def start_two(folder, recipes, *, runs=("run", "run"), address=None, environments=({}, {})):
    """Start two workers."""
    address = address or f"127.0.0.1:{reserve_port()}"
    jobs = []
    for rank, (recipe, run, environment) in enumerate(zip(recipes, runs, environments, strict=True)):
        save_recipe(recipe, folder / f"{rank}.yaml")
        weights = {"SWAV_TF_TEST_WEIGHTS": str(folder / f"{rank}.npz")}
        jobs.append(start(folder / f"{rank}.yaml", folder / run, 2, rank, address, **weights, **environment))
    return jobs


def start_cluster(folder, workers):
    """Start workers whose cluster TF_CONFIG describes, in one run folder."""
    addresses = [f"127.0.0.1:{reserve_port()}" for _ in range(workers)]

    def tf_config(rank):
        task = {"type": "worker", "index": rank}
        return json.dumps({"cluster": {"worker": addresses}, "task": task})

    arguments = (folder / "recipe.yaml", folder / "run")
    return [start(*arguments, TF_CONFIG=tf_config(rank)) for rank in range(workers)]


def wait_for_end(*jobs):
    """Return exit codes and messages of jobs that end by themselves."""
    try:
        return [job.wait() for job in jobs], [job.errors for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def wait_for_step(run_dir, step, jobs):
    wait_until(lambda: any(line["step"] >= step for line in lines(run_dir)), *jobs)


def resumed_from(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["resumed_from_step"]


# Bugs caught: shares that overlap, sums over one worker; workers of one machine that share their cores, or a place in the
# cluster; one that outlives the first.
def test_workers_of_one_machine_equal_one_process(tmp_path):
    recipe = tiny_recipe(**RECIPE, model__backbone=SMALL)  # the command line does not know the tests' network
    save_recipe(recipe, tmp_path / "recipe.yaml")
    pretrain(recipe, run_dir=tmp_path / "alone", quiet=True)
    command = [sys.executable, "-m", "cli.main", "pretrain", "-c", tmp_path / "recipe.yaml"]
    command += ["--run-dir", tmp_path / "run", "--workers-per-node", "2", "--quiet"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = newest(tmp_path / "run")
    assert run.facts["replicas"] == 2
    assert_same_run(newest(tmp_path / "alone"), run)


# Bugs caught: 'finite?' decided by each worker for itself: one skips, the other steps, and they drift apart or hang; a
# worker that is not the chief and writes.
def test_a_non_finite_gradient_on_one_worker_skips_the_step_on_both(tmp_path):
    # Each worker has its own folder, to see who writes what.
    poisoned = ({}, {"SWAV_TF_TEST_POISONED_STEP": "4"})
    finish(*start_two(tmp_path, [tiny_recipe(**RECIPE)] * 2, runs=("run", "other"), environments=poisoned))
    assert not (tmp_path / "other").exists()
    assert [line["step"] for line in lines(tmp_path / "run") if line.get("finite") == 0] == [5]
    weights = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert set(weights[0]) == set(weights[1])
    for name in weights[0]:
        assert np.all(np.isfinite(weights[0][name])), name
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


# Bugs caught: a signal that stops one worker and hangs the other; an exit code that means a failure for those that
# were not signalled; a run that cannot resume with more workers, or with fewer.
def test_a_signal_to_one_worker_stops_all_and_the_run_resumes_with_more_or_fewer(
    tmp_path, alone, monkeypatch
):
    save_recipe(tiny_recipe(**RECIPE), tmp_path / "recipe.yaml")
    monkeypatch.setenv("SWAV_TF_TEST_STEP_SECONDS", "0.2")
    run, stopped_at = tmp_path / "run", []
    for workers, step in ((1, 2), (2, 8)):
        terminal, screen = os.openpty()
        at_terminal = {"SWAV_TF_TEST_TERMINAL": os.ttyname(screen)}
        processes = (
            start_cluster(tmp_path, workers) if workers > 1 else [start_alone(tmp_path, **at_terminal)]
        )
        wait_for_step(run, step, processes)
        os.close(screen)
        os.close(terminal)  # sends SIGHUP, and refuses every output from here on
        if workers > 1:
            processes[-1].send_signal(signal.SIGTERM)  # not the chief
        finish(*processes, code=143 if workers > 1 else 129)
        stopped_at.append(newest(run).step)
    assert 2 <= stopped_at[0] < stopped_at[1] < 22
    monkeypatch.delenv("SWAV_TF_TEST_STEP_SECONDS")
    finish(start_alone(tmp_path))
    assert resumed_from(run) == stopped_at[1]
    assert_same_run(alone, newest(run))


def start_alone(folder, **environment):
    return start(folder / "recipe.yaml", folder / "run", **environment)


# Bugs caught: workers that wait forever for one that died or hangs; a loss without a name; a checkpoint that a loss
# damages; a restarted job that ends with other weights.
@pytest.mark.parametrize(
    ("how", "victim", "message"),
    [
        (signal.SIGKILL, 0, r"Worker 0 \(\S+, process {pid}\) is gone"),
        (signal.SIGSTOP, 1, r"Worker 1 \(\S+, process {pid}\) has sent no heartbeat for 5 s"),
    ],
    ids=["chief killed", "other stopped"],
)
def test_the_loss_of_a_worker_ends_the_others_and_the_same_command_resumes(
    tmp_path, alone, monkeypatch, how, victim, message
):
    save_recipe(tiny_recipe(**RECIPE, train__worker_timeout_seconds=5), tmp_path / "recipe.yaml")
    monkeypatch.setenv("SWAV_TF_TEST_STEP_SECONDS", "0.2")
    run, processes = tmp_path / "run", start_cluster(tmp_path, 2)
    wait_for_step(run, 4, processes)
    processes[1].send_signal(signal.SIGUSR1)
    wait_until(lambda: CheckpointStore(run / "checkpoints", kind="pretrain").steps(), *processes)
    processes[victim].send_signal(how)
    survivor = processes[1 - victim]
    assert survivor.wait() == 75
    errors = survivor.errors
    assert re.search(message.format(pid=processes[victim].pid), errors), errors[-2000:]
    assert "The last checkpoint is kept" in errors
    processes[victim].send_signal(signal.SIGCONT)  # a stopped one must not continue alone
    assert processes[victim].wait() == (-signal.SIGKILL if how == signal.SIGKILL else 75)
    monkeypatch.delenv("SWAV_TF_TEST_STEP_SECONDS")
    kept = newest(run).step
    assert 4 <= kept < 22
    if how == signal.SIGKILL:
        finish(*start_cluster(tmp_path, 2))
        assert resumed_from(run) == kept
        assert_same_run(alone, newest(run))


# === Before the first step ===


# Bug caught: workers whose images or settings differ, which train together to the end with exit code 0.
def test_other_images_or_settings_are_refused_by_all(tmp_path):
    recipes = []
    for rank, (count, seed) in enumerate([(70, 0), (69, 99)]):
        folder = tmp_path / f"images{rank}"  # the folder may differ, and does
        folder.mkdir()
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
            cv2.imwrite(str(folder / f"{index:03}.png"), pixels)
        recipe = tiny_recipe(train__seed=seed)
        data = recipe.data.model_copy(update={"kind": "images", "path": str(folder)})
        recipes.append(recipe.model_copy(update={"data": data}))
    codes, messages = wait_for_end(*start_two(tmp_path, recipes))
    assert codes == [2, 2], messages
    for message in messages:
        found = {line for line in message.splitlines() if line.startswith("  worker 1 has")}
        assert len(found) == 3, message  # the number of images, their names, and the seed
        assert "  worker 1 has images.images 69, worker 0 has 70" in found
        assert "  worker 1 has train.seed 99, worker 0 has 0" in found
    assert not (tmp_path / "run").exists()


# Bug caught: a wrong path on one machine, which the others report as an unknown error of TensorFlow.
def test_a_bad_path_on_one_worker_ends_the_other_with_the_reason(tmp_path):
    good = tiny_recipe()
    data = good.data.model_copy(update={"kind": "images", "path": str(tmp_path / "nowhere")})
    codes, messages = wait_for_end(*start_two(tmp_path, [good, good.model_copy(update={"data": data})]))
    assert codes == [1, 1], messages
    reason = r"worker 0 of 2: Worker 1 \(\S+, process \d+\) failed: .*nowhere"
    assert re.search(reason, messages[0]), messages[0][-2000:]
    assert "Traceback" not in messages[0]


# Bugs caught: a worker that waits for another before the first step and swallows SIGTERM; others that wait for one that
# has ended; an exit code by which a scheduler does not start them again.
def test_a_signal_before_the_first_step_ends_all(tmp_path):
    marker = tmp_path / "opening"
    recipes = [tiny_recipe(train__worker_timeout_seconds=5)] * 2
    stuck = ({}, {"SWAV_TF_TEST_STUCK_OPENING": str(marker)})
    processes = start_two(tmp_path, recipes, environments=stuck)
    wait_until(marker.exists, *processes)
    time.sleep(3)  # worker 0 has opened its images long ago, and waits in TensorFlow
    processes[0].send_signal(signal.SIGTERM)
    codes, messages = wait_for_end(*processes)
    assert codes == [143, 143], messages
    assert "Stopped by SIGTERM while no step was being trained" in messages[0]
    assert re.search(r"Worker 0 \(.*\) ended: Stopped by SIGTERM", messages[1]), messages[1][-2000:]


# Bug caught: a worker that waits, for minutes and without a message, for one that was lost just after they met.
def test_a_worker_that_is_lost_after_the_meeting_is_given_up(tmp_path):
    save_recipe(tiny_recipe(train__worker_timeout_seconds=5), tmp_path / "recipe.yaml")
    masters = [f"127.0.0.1:{reserve_port()}" for _ in range(2)]
    left = [  # worker 0 of one cluster and worker 1 of another
        start(
            tmp_path / "recipe.yaml",
            tmp_path / str(rank),
            2,
            rank,
            master,
            SWAV_TF_TEST_START_SECONDS="6",
        )
        for rank, master in enumerate(masters)
    ]
    for rank, master in enumerate(masters):
        meet(ClusterAddress(2, 1 - rank, master), timeout_seconds=120)  # and nothing follows
    codes, messages = wait_for_end(*left)
    assert codes == [75, 75], messages
    assert all("The TensorFlow cluster could not start" in message for message in messages)


# === A lost network ===


@pytest.fixture
def two_machines():
    """Names and addresses of two network namespaces with a cable between them, and a function that cuts it."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    names = [f"swav{os.getpid()}{side}" for side in "ab"]
    addresses = ["10.213.77.1", "10.213.77.2"]
    try:
        for name in names:
            if ip("netns", "add", name).returncode:
                pytest.skip("this system has no network namespaces")
        one, other = (("cable", "netns", name) for name in names)
        ip("link", "add", *one, "type", "veth", "peer", "name", *other)
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                assert not ip("-n", name, "link", "set", device, "up").returncode
        yield names, addresses, lambda: ip("-n", names[0], "link", "set", "cable", "down")
    finally:
        for name in names:
            ip("netns", "delete", name)


# Bug caught: a cut cable, which closes no connection, so that both sides wait forever.
def test_both_sides_of_a_lost_network_name_each_other(tmp_path, two_machines, monkeypatch):
    names, addresses, cut = two_machines
    monkeypatch.setenv("SWAV_TF_TEST_STEP_SECONDS", "0.2")
    recipes = [tiny_recipe(**RECIPE, train__worker_timeout_seconds=5)] * 2
    networks = [{"SWAV_TF_TEST_NETWORK": name} for name in names]
    processes = start_two(tmp_path, recipes, environments=networks, address=f"{addresses[0]}:9000")
    wait_for_step(tmp_path / "run", 4, processes)
    cut()
    codes, messages = wait_for_end(*processes)
    assert codes == [75, 75]
    for rank, message in enumerate(messages):
        assert f"Worker {1 - rank} (" in message
        assert "has sent no heartbeat for 5 s" in message
