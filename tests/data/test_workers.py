"""Crops made by other processes of this machine: bit for bit those of threads, whatever happens to a process."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path

import numpy as np
import pytest

from swav_tf.data import workers
from swav_tf.data.bad_images import BadImages
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.order import CropsByPosition, epoch_order
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import open_source
from swav_tf.data.subset import Subset
from swav_tf.data.workers import CropProcesses
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data
from tests.data.hanging import Hanging

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
CHUNK = 4


@pytest.fixture
def spoiled(folder):
    """The folder; the third image of the first epoch is cut short."""
    path = folder / f"{epoch_order(24, seed=31, epoch=0)[2]:02d}.jpg"
    path.write_bytes(path.read_bytes()[:700])
    return folder


class Maker:
    """Two processes, and what this process alone would make."""

    def __init__(self, settings, source=ImageFolder):
        self.crops = CropsByPosition(settings, source(settings.data.path), images_per_epoch=24)
        self.good, self.bad = [], BadImages(None, images=24, max_share=0.5)
        self.processes = CropProcesses(
            2, self.crops, chunk=CHUNK, make=self.row, good=lambda: self.good.append(1)
        )

    def row(self, position):
        made, label = self.crops.readable_at(position, self.bad)
        return [*made, np.int64(label)]

    def get(self, number):
        return self.processes.get(range(number * CHUNK, (number + 1) * CHUNK))

    def assert_right(self, number, chunk=None):
        expected = zip(*map(self.row, range(number * CHUNK, (number + 1) * CHUNK)), strict=True)
        for found, column in zip(chunk or self.get(number), expected, strict=True):
            np.testing.assert_array_equal(found, np.stack(column))

    def kill(self, processes):
        for process in processes:
            process.kill()
            connection.wait([process.sentinel])

    def pids(self):
        return [process.pid for process in self.processes._processes]


@pytest.fixture
def maker(folder, recipe):
    made = Maker(recipe(folder))
    yield made
    made.processes.end()


# Bugs caught: names, labels or the order of an epoch copied into each crop process.
def test_what_a_process_holds_does_not_grow_with_the_data(tmp_path, recipe, small_photo, encoded):
    photo_bytes = encoded(small_photo)

    def pickled(images):
        folder = tmp_path / str(images)
        for number in range(images):
            path = folder / "images" / f"{number % 3}" / f"an-image-with-a-long-name-{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo_bytes)
        source = ClassFolders(folder / "images")
        write_shards(source, folder / "shards", shards=2)
        shards = open_source(Data(kind="tfrecord", path=str(folder / "shards")))
        sizes, arrays = [], []
        for opened in (source, shards, Subset(source, range(images))):
            crops = CropsByPosition(recipe(folder), opened, images_per_epoch=images)
            crops.place(0)
            sizes.append(len(pickle.dumps(crops, protocol=5, buffer_callback=arrays.append)))
        return np.array(sizes)

    assert (pickled(300) - pickled(30)).max() < 300  # bytes, for 270 images more


# Bugs caught: one read after the other, so that every image takes the latency of the storage.
def test_the_images_of_a_chunk_are_read_at_once(folder, recipe):
    class Counted(ImageFolder):
        def __init__(self, path):
            super().__init__(path)
            self.barrier = threading.Barrier(CHUNK)

        def read(self, index):
            self.barrier.wait(timeout=60)  # broken unless all images of a chunk are being read
            return super().read(index)

    crops = CropsByPosition(recipe(folder), Counted(folder), images_per_epoch=24)
    slot = [np.empty((CHUNK, *shape), np.uint8) for shape in crops.shapes]
    with ThreadPoolExecutor(CHUNK) as readers:
        workers._work.update(crops=crops, slots=[slot], readers=readers)
        try:
            classes = workers._fill(0, [crops.place(position) for position in range(CHUNK)])
        finally:
            workers._work.clear()
    assert classes == [-1] * CHUNK


# Bugs caught: chunks in order of arrival; two calls that share a slot; a view of memory that is written again;
# workers that load TensorFlow, or the program that started them.
def test_many_calls_at_once(maker):
    kept = {}

    def take(first):
        for number in range(first, 18, 6):
            kept[number] = maker.get(number)

    threads = [threading.Thread(target=take, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(18):
        maker.assert_right(number, kept[number])
    loaded = maker.processes._executor.submit(eval, "set(__import__('sys').modules)").result()
    assert not loaded & {"tensorflow", "keras", "pytest"}


def test_an_unreadable_image_is_made_here_and_counted(spoiled, recipe):
    maker = Maker(recipe(spoiled))
    maker.get(0)
    assert (len(maker.good), maker.bad.count) == (CHUNK - 1, 1)
    maker.assert_right(0)
    maker.processes.end()


# Bugs caught: a wait for an answer that never comes; a chunk that is lost with its process; no message about it.
def test_a_killed_process_is_named_and_replaced(maker, caplog):
    for _ in range(2):
        killed, other = maker.pids()
        maker.kill(maker.processes._processes[:1])
        for number in range(8):
            maker.assert_right(number)
        assert f"lost process {killed} (ended by SIGKILL). Restarting all" in caplog.text
        assert f"process {other}" not in caplog.text
        assert len(caplog.records) == 1
        assert not {killed, other} & set(maker.pids())
        caplog.clear()


# Bug caught: processes that are started for ever.
def test_processes_that_are_lost_again_and_again_end_the_run(maker, monkeypatch):
    monkeypatch.setattr(workers, "_ATTEMPTS", 2)
    start = maker.processes._start

    def start_and_kill():
        start()
        maker.kill(maker.processes._processes)

    monkeypatch.setattr(maker.processes, "_start", start_and_kill)
    maker.kill(maker.processes._processes)
    with pytest.raises(DataError, match=r"lost 2 times in a row \(process \d+ \(ended by"):
        maker.get(0)


# Bugs caught: an answer that is waited for without end; the wrong process killed.
@pytest.mark.parametrize("which", ["one", "all"])
def test_processes_that_hang_are_replaced(folder, recipe, caplog, monkeypatch, which):
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 2)
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 1)
    maker = Maker(recipe(folder), Hanging if which == "one" else ImageFolder)
    before = maker.pids()
    if which == "all":
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
    for number in range(6):
        maker.get(number)
    assert f"no crops for 2 s from one of the processes {before[0]}, {before[1]}" in caplog.text
    assert not set(before) & set(maker.pids())
    maker.processes.end()


# Bug caught: processes killed because a disk does not answer for a while.
def test_processes_that_were_all_held_up_are_kept(maker, caplog, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 1)
    before = maker.pids()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    later = threading.Timer(3, lambda: [os.kill(pid, signal.SIGCONT) for pid in before])
    later.start()
    maker.assert_right(0)
    later.join()
    assert maker.pids() == before
    assert caplog.text == ""


# Bugs caught: a scheduler's or a terminal's signal takes the processes away before the trainer has stopped; calls
# that wait for ever once all is to end.
def test_signals_to_all_are_the_trainers_and_an_end_frees_those_that_wait(maker, caplog):
    processes = list(maker.processes._processes)
    for process in processes:
        assert os.getsid(process.pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(process.pid, number)
    maker.assert_right(0)
    assert caplog.text == ""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    found = []
    waiting = [threading.Thread(target=lambda: found.append(maker.get(0))) for _ in range(6)]
    for thread in waiting:
        thread.start()
    maker.processes.end()
    for thread in waiting:
        thread.join()
    assert found == [None] * 6
    assert all(connection.wait([process.sentinel], timeout=0) for process in processes)


# No `if __name__ == "__main__"`: a script of a user's need not have one.
TRAINER = """
import os, signal, sys
from multiprocessing.synchronize import SemLock

semaphores, make_name = [], SemLock._make_name
SemLock._make_name = staticmethod(lambda: semaphores.append(make_name()) or semaphores[-1])

from swav_tf.data.workers import CropProcesses
from swav_tf.data.order import CropsByPosition
from swav_tf.data.folders import ImageFolder
from swav_tf.recipe.pretraining import Recipe

recipe = Recipe.model_validate_json(sys.argv[1])
crops = CropsByPosition(recipe, ImageFolder(recipe.data.path), images_per_epoch=24)
processes = CropProcesses(2, crops, chunk=4, make=crops.at, good=lambda: None)
processes.get(range(4))
print(*[process.pid for process in processes._processes], *semaphores, flush=True)
if sys.argv[2] != "exit":
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "exit"])
def test_nothing_is_left_of_a_trainer_that_ends(folder, recipe, tmp_path_factory, how):
    script = tmp_path_factory.mktemp("script") / "train.py"
    script.write_text(TRAINER)
    trainer = subprocess.run(
        [sys.executable, script, recipe(folder).model_dump_json(), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert trainer.returncode == (0 if how == "exit" else -getattr(signal, how))
    one, other, *semaphores = trainer.stdout.split()
    files = [Path("/dev/shm") / f"sem.{name.removeprefix('/')}" for name in semaphores]
    assert len(files) > 2
    while runs(one) or runs(other) or any(path.exists() for path in files):  # pytest has a limit
        time.sleep(0.05)


def runs(pid):
    """Return whether the process exists, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Deadly(ImageFolder):
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_processes_that_do_not_start_are_reported(folder, recipe):
    crops = CropsByPosition(recipe(folder), Deadly(folder), images_per_epoch=24)
    with pytest.raises(
        DataError, match=r"2 crop processes could not be started: one ended while it started\. Lower "
    ):
        CropProcesses(2, crops, chunk=CHUNK, make=crops.at, good=lambda: None)


# Bug caught: a source whose members cannot go to another process.
@pytest.mark.parametrize("kind", ["digits", "images", "tfrecord"])
def test_sources_can_be_pickled(folder, kind, tmp_path_factory):
    path = {"digits": None, "images": str(folder), "tfrecord": str(tmp_path_factory.mktemp("shards"))}[kind]
    if kind == "tfrecord":
        write_shards(ImageFolder(folder), Path(path), shards=2)
    source = open_source(Data(kind=kind, path=path))
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source)
    np.testing.assert_array_equal(np.asarray(copy.read(5)), np.asarray(source.read(5)))


# Bugs caught: places of a worker, of a resumed run, of the parts of a batch; labels; the tally.
@pytest.mark.parametrize(
    ("steps", "start", "of", "worker"), [(7, 0, 1, 0), (5, 2, 2, 1), (2, 0, 4, 3)], ids=["one", "two", "four"]
)
def test_a_run_sees_the_same(spoiled, recipe, monkeypatch, tmp_path_factory, steps, start, of, worker):
    pytest.importorskip("tensorflow")
    from swav_tf.data.loader import ended_after, training_batches

    monkeypatch.setattr(workers, "LARGEST_CHUNK", 3)  # of 4 images two chunks, of 8 four
    for path in sorted(spoiled.glob("*.jpg")):
        (folder := spoiled / ("first" if path.stem < "12" else "second")).mkdir(exist_ok=True)
        path.rename(folder / path.name)
    source, tallies = ClassFolders(spoiled), tmp_path_factory.mktemp("tallies")

    def batches(processes):
        settings = recipe(spoiled, data={"processes": processes, "max_bad_share": 0.5})
        with ended_after():
            data = training_batches(
                settings, source, steps_per_epoch=3, start_step=start, total_steps=steps, workers=of,
                worker=worker, replica_batch_size=8 // of, labeled=True,
                bad_images=BadImages(tallies / f"{processes}.txt", images=24, max_share=0.5),
            )  # fmt: skip
            iterator = iter(data)
            return [[tensor.numpy() for tensor in batch] for batch in iterator]

    expected, alone, made_here = batches(0), CropsByPosition.at, []
    monkeypatch.setattr(CropsByPosition, "at", lambda *a, **k: [made_here.append(k), alone(*a, **k)][1])
    found = batches(2)
    assert len(made_here) <= 2 * 3  # the spoiled image and its replacement, once an epoch
    assert len(found) == len(expected) == steps - start
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    if of == 1:
        assert {label for *_, labels in found for label in labels} == {0, 1}
        assert (tallies / "2.txt").read_text() == (tallies / "0.txt").read_text()
        assert re.match(r"\w+/\d\d\.jpg\ttruncated JPEG", (tallies / "0.txt").read_text())
