"""Crops made by other processes of this machine."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from swav_tf.data import workers
from swav_tf.data.bad_images import BadImages
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.order import CropsByPosition, epoch_order
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import open_source
from swav_tf.data.workers import CropProcesses, make_chunk
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Data

ROOT = Path(__file__).parents[3]
BATCH, STEPS_PER_EPOCH = 8, 3  # all of the folder's 24 images each epoch
CHUNK = 4


@pytest.fixture
def spoiled(folder):
    """The folder; the image that comes third in the first epoch is cut short."""
    path = folder / f"{epoch_order(24, seed=31, epoch=0)[2]:02d}.jpg"
    path.write_bytes(path.read_bytes()[:700])
    return folder


class Maker:
    """Processes, and what this process alone would make."""

    def __init__(self, settings, *, count=2):
        self.crops = CropsByPosition(settings, ImageFolder(settings.data.path), images_per_epoch=24)
        self.good, self.bad = [], []
        self.processes = CropProcesses(
            count, self.crops, lambda place: place, self.row, chunk=CHUNK, good=lambda: self.good.append(1)
        )

    def row(self, place):
        made, label = self.crops.readable_at(place, good=lambda: None, bad=lambda *why: self.bad.append(why))
        return [*made, np.int64(label)]

    def assert_right(self, number):
        for ours, theirs in zip(
            self.processes.get(number),
            make_chunk(self.row, range(number * CHUNK, (number + 1) * CHUNK)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)

    def started(self):
        """The processes, each once."""
        return list({seat.process.pid: seat.process for seat in self.processes._seats}.values())


@pytest.fixture
def maker(folder, recipe):
    made = Maker(recipe(folder))
    yield made
    made.processes.end()


# Bugs caught: chunks in order of arrival; two calls that share a seat; a view of memory that is written again.
def test_many_calls_at_once(maker):
    kept = {}

    def take(first):
        for number in range(first, 18, 6):
            kept[number] = maker.processes.get(number)

    threads = [threading.Thread(target=take, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(18):
        expected = make_chunk(maker.row, range(number * CHUNK, (number + 1) * CHUNK))
        for ours, theirs in zip(kept[number], expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_image_that_cannot_be_read_is_made_here_and_counted(spoiled, recipe):
    maker = Maker(recipe(spoiled), count=1)
    maker.processes.get(0)
    assert len(maker.good) == CHUNK - 1
    assert [name for name, _ in maker.bad] == [f"{epoch_order(24, seed=31, epoch=0)[2]:02d}.jpg"]
    maker.assert_right(0)
    maker.processes.end()


# Bugs caught: a wait for an answer that never comes; a chunk that is lost with its process; silence about it.
def test_processes_that_are_killed_are_told_and_their_share_is_made_here(maker, capfd):
    maker.assert_right(0)
    for number, process in enumerate(maker.started(), start=1):
        process.kill()
        for place in range(8):
            maker.assert_right(place)
        said = capfd.readouterr().err
        assert said.count("lost (ended by SIGKILL, as the system does when memory is short)") == 1, number
        assert "one of 2 processes" in said


# Bug caught: a scheduler's or a terminal's signal takes the processes away before the trainer has stopped.
def test_signals_to_all_are_the_trainers(maker, capfd):
    for process in maker.started():
        assert os.getsid(process.pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            process.send_signal(number)
    for number in range(6):
        maker.assert_right(number)
    assert all(process.poll() is None for process in maker.started())
    assert capfd.readouterr().err == ""


# Bugs caught: an answer that is waited for without end; a process that hangs and is asked again and again; one that
# is waited for when all ends, though the system does not let go of it (it waits for a network disk that is gone).
def test_a_process_that_hangs_is_given_up_and_its_share_is_made_here(maker, capfd, monkeypatch):
    maker.assert_right(0)
    hung, other = maker.started()
    kills = []
    monkeypatch.setattr(hung, "kill", lambda: kills.append(1))  # as if it could not be killed
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 10)
    monkeypatch.setattr(workers, "_END_SECONDS", 1)
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 1)
    hung.send_signal(signal.SIGSTOP)
    for number in range(4):  # all seats
        maker.assert_right(number)
    assert kills == [1]
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 100_000)  # a second wait would not end
    for number in range(8):
        maker.assert_right(number)
    said = capfd.readouterr().err
    assert said.count("warning") == 1
    assert (
        f"one of 2 processes that make crops has not answered for 10 s and is given up (process {hung.pid})"
        in said
    )
    assert other.poll() is None
    maker.processes.end()
    assert other.wait() == -signal.SIGKILL
    os.kill(hung.pid, signal.SIGKILL)
    hung.wait()


# Bug caught: a disk that answered nobody for a while, and all processes given up for the rest of the run.
def test_processes_that_were_all_held_up_are_kept(maker, capfd, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 1)
    maker.assert_right(0)
    for process in maker.started():
        process.send_signal(signal.SIGSTOP)
    later = threading.Timer(3, lambda: [process.send_signal(signal.SIGCONT) for process in maker.started()])
    later.start()
    for number in range(8):
        maker.assert_right(number)
    later.join()
    assert all(process.poll() is None for process in maker.started())
    assert capfd.readouterr().err == ""


def test_an_end_frees_those_that_wait(maker):
    for process in maker.started():
        process.send_signal(signal.SIGSTOP)
    found = []
    waiting = [threading.Thread(target=lambda: found.append(maker.processes.get(0))) for _ in range(6)]
    for thread in waiting:
        thread.start()
    maker.processes.end()
    for thread in waiting:
        thread.join()
    assert found == [None] * 6
    assert [process.returncode for process in maker.started()] == [-signal.SIGKILL] * 2


TRAINER = """
import sys, time
from swav_tf.data.workers import CropProcesses
from swav_tf.data.order import CropsByPosition
from swav_tf.data.folders import ImageFolder
from swav_tf.recipe.pretraining import Recipe

recipe = Recipe.model_validate_json(sys.argv[1])
crops = CropsByPosition(recipe, ImageFolder(recipe.data.path), images_per_epoch=24)
processes = CropProcesses(2, crops, int, crops.at, chunk=4, good=lambda: None)
processes.get(0)
print(*{seat.process.pid for seat in processes._seats}, flush=True)
time.sleep(600)
"""


def test_they_end_with_a_trainer_that_is_killed(folder, recipe):
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, recipe(folder).model_dump_json()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(runs, pids))
    trainer.kill()
    trainer.communicate()
    while any(map(runs, pids)):  # pytest's own limit ends a test that waits for ever
        time.sleep(0.05)


def runs(pid):
    """Whether the process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_that_do_not_start_are_told(folder, recipe, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"Received: 2; exit code 1\. Set fewer, or 0"):
        Maker(recipe(folder))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DataError, match=r"Received: 2; .*No such file"):
        Maker(recipe(folder))


# Bug caught: a source that holds what cannot go to another process.
@pytest.mark.parametrize("kind", ["digits", "images", "tfrecord"])
def test_sources_travel(folder, kind, tmp_path_factory):
    path = {"digits": None, "images": str(folder), "tfrecord": str(tmp_path_factory.mktemp("shards"))}[kind]
    if kind == "tfrecord":
        write_shards(ImageFolder(folder), Path(path), shards=2)
    source = open_source(Data(kind=kind, path=path))
    there = pickle.loads(pickle.dumps(source))
    assert len(there) == len(source)
    np.testing.assert_array_equal(np.asarray(there.read(5)), np.asarray(source.read(5)))


# Bugs caught: places of a worker, of a resumed run, of the bits of a batch; labels; the tally.
def test_a_run_sees_the_same(spoiled, recipe, monkeypatch, tmp_path_factory):
    pytest.importorskip("tensorflow")
    from swav_tf.data.loader import ended_after, training_batches

    monkeypatch.setattr(workers, "LARGEST_CHUNK", 3)  # of 4 images two chunks, of 8 four
    for path in sorted(spoiled.glob("*.jpg")):
        (folder := spoiled / ("first" if path.stem < "12" else "second")).mkdir(exist_ok=True)
        path.rename(folder / path.name)
    source, tallies = ClassFolders(spoiled), tmp_path_factory.mktemp("tallies")
    made_here, at = [], CropsByPosition.at
    monkeypatch.setattr(CropsByPosition, "at", lambda *a, **k: [made_here.append(k), at(*a, **k)][1])

    def batches(processes, tally, *, steps, start=0, workers=1, worker=0):
        settings = recipe(spoiled, data={"processes": processes, "max_bad_share": 0.5})
        with ended_after():
            data = training_batches(
                settings, source, steps_per_epoch=STEPS_PER_EPOCH, start_step=start, total_steps=steps,
                workers=workers, worker=worker, replica_batch_size=4 if workers == 2 else BATCH, labelled=True,
                bad_images=BadImages(tallies / tally, images=24, max_share=0.5),
            )  # fmt: skip
            iterator = iter(data)
            return [[tensor.numpy() for tensor in batch] for batch in iterator]

    for case in ({"steps": 7}, {"steps": 5, "start": 2, "workers": 2, "worker": 1}):
        made_here.clear()
        ours = batches(2, "processes.txt", **case)
        assert len(made_here) <= 2 * 3  # the spoiled image and its stand-in, once an epoch
        theirs = batches(0, "threads.txt", **case)
        assert len(ours) == len(theirs) == case["steps"] - case.get("start", 0)
        assert {label for *_, labels in ours for label in labels} == {0, 1}
        for one, other in zip(ours, theirs, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    assert (tallies / "processes.txt").read_text() == (tallies / "threads.txt").read_text() != ""
    assert re.match(r"\w+/\d\d\.jpg\ttruncated JPEG", (tallies / "threads.txt").read_text())
