"""Crops from a tf.data service whose dispatcher and workers are processes on loopback."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from swav_tf.data import service, workers
from swav_tf.data.bad_images import BadImages
from swav_tf.data.folders import ImageFolder
from swav_tf.data.loader import training_batches
from swav_tf.data.order import CropsByPosition, epoch_order
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.files import save_recipe
from swav_tf.recipe.pretraining import Recipe

tf = pytest.importorskip("tensorflow")

ROOT = Path(__file__).parents[3]
IMAGES, BATCH, STEPS_PER_EPOCH = 24, 8, 3


class Servers:
    """Processes of `swav-tf data serve`; the first is dispatcher and worker, the others join it."""

    def __init__(self, recipe):
        self.recipe, self.address = recipe, None
        self.processes = []

    def start(self):
        place = ["--join", self.address] if self.address else ["--port", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "data", "serve", "-c", self.recipe, "--host", "127.0.0.1", *place],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        self.processes.append(process)
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"data\.service=(\S+)", line):
                self.address = found[1]
                return process
        raise AssertionError("".join(said))

    def end(self):
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def images(tmp_path_factory, photo):
    """24 photos; the one that comes third in the first epoch is cut short."""
    root = tmp_path_factory.mktemp("images")
    small = cv2.resize(photo, (120, 80), interpolation=cv2.INTER_AREA)
    for i in range(IMAGES):
        small[:, :60] = 10 * i
        cv2.imwrite(str(root / f"{i:02d}.jpg"), small)
    spoiled = root / f"{epoch_order(IMAGES, seed=31, epoch=0)[2]:02d}.jpg"
    spoiled.write_bytes(spoiled.read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def settings(images):
    """settings(service, **train) -> the recipe."""

    def make(address, **train):
        return Recipe(
            name="test",
            data={"kind": "images", "path": str(images), "service": address, "max_bad_share": 0.5},
            crops=[
                {"count": 2, "size": 32, "scale": (0.14, 1.0)},
                {"count": 3, "size": 16, "scale": (0.05, 0.14)},
            ],
            optimizer={"peak_learning_rate": 1.0},
            train={"epochs": 2, "batch_size": BATCH, **train},
        )

    return make


@pytest.fixture(scope="module")
def servers(settings, tmp_path_factory):
    """Two, which the last test kills."""
    path = tmp_path_factory.mktemp("servers") / "recipe.yaml"
    save_recipe(settings(None), path)
    running = Servers(path)
    try:
        running.start()
        running.start()
        yield running
    finally:
        running.end()


def batches(settings, images, *, steps, start=0, workers=1, worker=0, tally=None, on_batch=lambda _: None):
    source, seen = ImageFolder(images), []
    data = training_batches(
        settings, source, steps_per_epoch=STEPS_PER_EPOCH, start_step=start, total_steps=steps, workers=workers,
        worker=worker, replica_batch_size=BATCH // workers // 2 if workers > 1 else BATCH,
        bad_images=tally or BadImages(None, images=len(source), max_share=0.5),
    )  # fmt: skip
    for number, batch in enumerate(data):
        seen.append([group.numpy() for group in batch])
        on_batch(number)
    return seen


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


# Bugs caught: order of arrival, chunks lost or twice, a worker's shares mixed up, another position after a
# resumption, an image that cannot be read and is not counted, a trainer that takes other crops than its own.
def test_crops_are_those_of_a_run_without_a_service(servers, settings, images, tmp_path, monkeypatch):
    made_here, at = [], CropsByPosition.at
    monkeypatch.setattr(CropsByPosition, "at", lambda *a, **k: [made_here.append(k), at(*a, **k)][1])
    served, alone = settings(servers.address), settings(None)
    tallies = [
        BadImages(tmp_path / name, images=IMAGES, max_share=0.5) for name in ("alone.txt", "served.txt")
    ]
    ours = batches(served, images, steps=9, tally=tallies[1])
    assert len(made_here) == 2 * 3  # the spoiled image and its stand-in, once an epoch; all else came
    assert_same(ours, batches(alone, images, steps=9, tally=tallies[0]))
    assert (tmp_path / "alone.txt").read_text() == (tmp_path / "served.txt").read_text() != ""
    for worker in (0, 1):
        place = {"steps": 7, "start": 2, "workers": 2, "worker": worker}
        assert_same(batches(served, images, **place), batches(alone, images, **place))

    with pytest.raises(tf.errors.OpError, match=r"other crops than the trainer would: train\.seed differ"):
        batches(settings(servers.address, seed=32), images, steps=2)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_a_service_that_does_not_answer_is_told_at_once(settings, images, monkeypatch, address):
    monkeypatch.setattr(service, "_CONNECT_SECONDS", 0.1)
    with pytest.raises(DataError, match=r"must be host:port|must answer at data\.service, 127\.0\.0\.1:1"):
        batches(settings(address), images, steps=2)


# Bugs caught: the chunks that a dead worker had been given are lost with it, and the run hangs or goes on without.
def test_workers_and_dispatcher_are_killed(servers, settings, images, monkeypatch, capfd):
    monkeypatch.setattr(service, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(workers, "LARGEST_CHUNK", 3)  # four chunks of two make a batch
    served = settings(servers.address)

    def kill(number):
        if number in (5, 60):
            servers.processes[1 if number == 5 else 0].send_signal(signal.SIGKILL)

    steps = 160
    assert_same(
        batches(served, images, steps=steps, on_batch=kill), batches(settings(None), images, steps=steps)
    )
    assert "This process makes the crops itself" in capfd.readouterr().err
