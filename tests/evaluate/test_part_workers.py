"""Parts by several processes of this machine, and by actors of Ray where that is installed."""

import os
import subprocess
import sys
import time
from functools import partial

import pytest

from evaluate.feature_file import read_feature_file
from evaluate.feature_parts import find_problems
from evaluate.features import extract_features
from evaluate.part_workers import Devices, actor_cores, make_parts, process_starts
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate import run_parts
from tests.evaluate.models import NumpyBackend, assert_same_features, class_folders


def make(folders, folder, progress=lambda done, total: None, **settings):
    starts = process_starts(
        lambda cores: partial(run_parts.open_numpy, folders, **settings), Devices("cpu", 2), 1
    )
    return make_parts(starts, run_parts.parts_of(folder), progress)


@pytest.fixture
def whole(tmp_path, folders):
    """One process's features."""
    extract_features(NumpyBackend(), class_folders(folders), tmp_path / "whole.npy", batch_size=3)
    return read_feature_file(tmp_path / "whole.npy")


# Bugs caught: a part that is lost with its process, made twice or from its start; a death that ends the others.
@pytest.mark.multiprocess
def test_a_killed_process_is_replaced(tmp_path, folders, whole, logged):
    done = []
    made = make(folders, tmp_path / "parts", lambda *progress: done.append(progress), once=tmp_path / "died")
    assert_same_features(read_feature_file(tmp_path / "parts"), whole)
    assert sorted(each.images_before for each in made) == [0, 0, 0, 3]
    assert done[-1] == (20, 20)
    [(_, message)] = logged
    assert "ended with code -9. Starting another one" in message


# Bugs caught: a part that kills its processes, or fails, and ends the others or is tried forever; a model that cannot
# be opened, which each part would report.
@pytest.mark.multiprocess
def test_other_parts_are_made_when_some_fail(tmp_path, folders):
    with pytest.raises(
        DataError, match=r"^1 of 4 parts failed.* Part 2/4: .*; 3 processes in a row have died"
    ):
        make(folders, tmp_path / "parts", always=2)
    with pytest.raises(DataError, match=r"^1 of 4 parts failed.* Part 2/4: no such image"):
        make(folders, tmp_path / "parts", fails=2)
    assert [why for _, why in find_problems(tmp_path / "parts")] == ["part 2/4 is not finished"]
    with pytest.raises(DataError, match=r"^[^0-9].*nowhere"):
        make(tmp_path / "nowhere", tmp_path / "parts")


# Bugs caught: two processes on one GPU; a GPU that only the machine has, not this job; a CPU process that takes a GPU.
@pytest.mark.multiprocess
def test_each_process_has_its_device(monkeypatch):
    def seen(devices):
        names = "CUDA_VISIBLE_DEVICES", "TF_NUM_INTRAOP_THREADS"
        workers = [
            start() for start in process_starts(lambda cores: partial(_environment, names), devices, 3)
        ]
        try:
            return [worker.call(None) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    assert seen(Devices("gpu", 2)) == [["5", "3"], ["7", "3"]]
    assert seen(Devices("cpu", 1)) == [["-1", "3"]]
    with pytest.raises(UsageError, match=r"--devices gpu:4 needs as many GPUs. Received: 3 visible"):
        process_starts(lambda cores: None, Devices("gpu", 4), 0)


def _environment(names):
    return [os.environ[name] for name in names], None


# Bugs caught: actors that Ray can place nowhere, which wait forever; cores of two nodes counted for one actor.
def test_actors_fit_into_the_cluster():
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}]
    assert actor_cores(nodes, Devices("gpu", 5), 0) == 4
    assert actor_cores(nodes, Devices("gpu", 1), 0) == 16
    assert actor_cores(nodes, Devices("cpu", 7), 0) == 4
    assert actor_cores(nodes, Devices("cpu", 3), 8) == 8
    for devices, cores in ((Devices("gpu", 6), 0), (Devices("cpu", 29), 0), (Devices("cpu", 1), 17)):
        with pytest.raises(
            UsageError, match=r"must fit into the Ray cluster. Received: 28 CPU, 5 GPU on 3 nodes"
        ):
            actor_cores(nodes, devices, cores)


# Bugs caught: images that are lost or made twice when an actor or the driver is killed; actors that outlive the driver.
@pytest.mark.multiprocess
def test_ray(tmp_path, folders, whole):
    ray = pytest.importorskip("ray")
    parts = run_parts.parts_of(tmp_path / "parts")
    driver = subprocess.Popen([sys.executable, run_parts.__file__, folders, tmp_path / "parts"])
    while not any(part.table.exists() for part in parts):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    try:
        made = run_parts.make_on_ray(folders, tmp_path / "parts", once=tmp_path / "died")
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists()
    assert_same_features(read_feature_file(tmp_path / "parts"), whole)
    assert sum(each.images_before for each in made) >= 5  # by the first driver
