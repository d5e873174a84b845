import json
import os
import resource
import shutil

import numpy as np
import pytest

from swav_tf.runs.checkpoint import ARRAYS, FACTS, CheckpointError, CheckpointStore


def arrays(number):
    return {"weights": np.full((3, 4), number, np.float32), "count": np.array([number], np.int64)}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", kind="pretrain", keep_last=2)


# Bugs caught: arrays or facts that come back changed; a folder that is visible before it is whole.
def test_what_was_written_comes_back(store):
    store.write(7, arrays(7), {"position": {"step": 7}})
    checkpoint, complaints = store.newest()
    assert complaints == []
    assert checkpoint.step == 7
    assert checkpoint.facts["position"] == {"step": 7}
    for name, array in arrays(7).items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
        assert checkpoint.arrays[name].dtype == array.dtype
    assert [path.name for path in store.folder.iterdir()] == ["step-000000007"]


# Bugs caught: a kept one that is removed, an old one that stays, a pruning by name instead of number.
def test_the_last_and_the_kept_stay(store):
    for step in (9, 10, 99, 100, 101):
        store.write(step, arrays(step), {}, keep=step == 10)
    assert store.steps() == [10, 100, 101]


# Bug caught: half a checkpoint under its own name, left by a kill while it was removed or written anew.
@pytest.mark.parametrize("written", [3, 2], ids=["an old one is removed", "one is written again"])
def test_a_kill_during_a_removal_leaves_no_half_checkpoint(store, monkeypatch, written):
    for step in (1, 2):
        store.write(step, arrays(step), {})

    def killed_half_way(path, **_):
        if (path / ARRAYS).exists():
            (path / ARRAYS).unlink()
            raise KeyboardInterrupt  # passes all that catches errors, as a kill does

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            store.write(written, arrays(written), {})
    for step in store.steps():
        store.read(step)
    store.write(4, arrays(4), {})
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []


# Bug caught: a damaged later one, which a run could not go on from, that pushes out the good one just written.
def test_a_damaged_later_one_costs_no_good_one(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", kind="pretrain", keep_last=1)
    store.write(10, arrays(10), {})
    truncate(store.path(10))
    store.write(9, arrays(9), {})
    assert store.newest()[0].step == 9


def truncate(path):
    (path / ARRAYS).write_bytes((path / ARRAYS).read_bytes()[:-5])


def flip_a_bit(path):
    data = bytearray((path / ARRAYS).read_bytes())
    data[-3] ^= 1
    (path / ARRAYS).write_bytes(data)


def break_facts(path):
    (path / FACTS).write_text("{")


def change_a_fact(path):
    text = (path / FACTS).read_text()
    (path / FACTS).write_text(text.replace('"keep": false', '"keep": true'))


def lose_the_checksum(path):
    facts = json.loads((path / FACTS).read_text())
    del facts["facts_sha256"]
    (path / FACTS).write_text(json.dumps(facts))


def no_dictionary(path):
    (path / FACTS).write_text("[]")


def remove_arrays(path):
    (path / ARRAYS).unlink()


# Bug caught: a damaged checkpoint that is loaded, or that hides the good one before it.
@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, break_facts, change_a_fact, lose_the_checksum, no_dictionary, remove_arrays],
)
def test_a_damaged_newest_is_told_and_the_one_before_is_used(store, damage):
    store.write(1, arrays(1), {})
    store.write(2, arrays(2), {})
    damage(store.path(2))
    checkpoint, [complaint] = store.newest()
    assert checkpoint.step == 1
    assert "step-000000002" in complaint
    assert "damaged" in complaint


# Bug caught: starting anew in silence where all checkpoints are damaged.
def test_only_damaged_ones_is_an_error_with_a_remedy(store):
    store.write(1, arrays(1), {})
    truncate(store.path(1))
    with pytest.raises(CheckpointError, match="--fresh"):
        store.newest()


# Bug caught: a probe that goes on from a pretraining checkpoint.
def test_another_kind_is_refused(store):
    store.write(1, arrays(1), {})
    with pytest.raises(CheckpointError, match="must be a probe checkpoint"):
        CheckpointStore(store.folder, kind="probe").read(1)


# Bug caught: leftovers of a killed writer that are taken for a checkpoint or fill the disk.
def test_a_half_written_one_is_no_checkpoint(store):
    leftover = store.folder / ".part-000000005-123"
    leftover.mkdir(parents=True)
    (leftover / FACTS).write_text("{}")
    assert store.newest() == (None, [])
    store.write(6, arrays(6), {})
    assert not leftover.exists()


# Bug caught: a full disk that takes earlier checkpoints along, or leaves half a file.
def test_a_full_disk_leaves_earlier_checkpoints(store):
    store.write(1, arrays(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            store.write(2, {"large": np.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.newest()[0].step == 1
    assert [path.name for path in store.folder.iterdir()] == ["step-000000001"]


# Bug caught: runs of before the facts had a checksum that cannot be gone on with.
def test_the_format_before_is_read(store):
    path = store.write(1, arrays(1), {"position": {"mean": 0.1}})
    facts = json.loads((path / FACTS).read_text())
    del facts["facts_sha256"]
    (path / FACTS).write_text(json.dumps({**facts, "format": 1}))
    assert store.read(1).facts["position"] == {"mean": 0.1}


# Bug caught: a checksum that is not of the file.
def test_the_checksum_is_of_the_arrays(store):
    import hashlib

    path = store.write(1, arrays(1), {})
    facts = json.loads((path / FACTS).read_text())
    assert facts["sha256"] == hashlib.sha256((path / ARRAYS).read_bytes()).hexdigest()
    assert os.path.getsize(path / ARRAYS) > 0


# Bug caught: features of an older model that pass for the newest one's.
def test_the_latest_is_the_newest_or_an_error(store):
    assert store.latest() is None
    store.write(1, arrays(1), {})
    store.write(2, arrays(2), {})
    assert store.latest().step == 2
    truncate(store.path(2))
    with pytest.raises(
        CheckpointError, match=r"step-000000002 is damaged[\s\S]*is of step 1\. To take that one"
    ):
        store.latest()
