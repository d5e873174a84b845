import hashlib
import json
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


# Bugs caught: arrays or facts that come back changed; another kind; a leftover of a killed writer that counts or
# stays; a checksum of something else.
def test_what_was_written_comes_back(store):
    leftover = store.folder / ".part-000000005-123"
    leftover.mkdir(parents=True)
    (leftover / FACTS).write_text("{}")
    assert store.newest() == (None, [])
    assert store.latest() is None
    path = store.write(7, arrays(7), {"position": {"step": 7}})
    checkpoint, problems = store.newest()
    assert (checkpoint.step, checkpoint.facts["position"], problems) == (7, {"step": 7}, [])
    assert checkpoint.facts["sha256"] == hashlib.sha256((path / ARRAYS).read_bytes()).hexdigest()
    for name, array in arrays(7).items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
        assert checkpoint.arrays[name].dtype == array.dtype
    assert [path.name for path in store.folder.iterdir()] == ["step-000000007"]
    with pytest.raises(CheckpointError, match="must be a probe checkpoint"):
        CheckpointStore(store.folder, kind="probe").read(7)


# Bugs caught: a kept one that is removed, an old one that stays, pruning by name instead of number; a damaged later
# one that replaces the good one just written.
def test_the_last_and_the_kept_stay(store):
    for step in (9, 10, 99, 100, 101):
        store.write(step, arrays(step), {}, keep=step == 10)
    assert store.steps() == [10, 100, 101]
    for step, best in ((102, 101), (103, 101), (104, 101)):
        store.write(step, arrays(step), {}, best=best)
    assert store.steps() == [10, 101, 103, 104]
    store.write(105, arrays(105), {}, best=105)  # better: the one before is not kept
    assert store.steps() == [10, 104, 105]
    truncate(store.path(105))
    store.keep_last = 1
    store.write(104, arrays(104), {})
    assert store.newest()[0].step == 104


# Bug caught: half a checkpoint under its own name after a kill while it was removed or written again.
@pytest.mark.parametrize("written", [3, 2], ids=["an old one is removed", "one is written again"])
def test_a_kill_during_a_removal_leaves_no_half_checkpoint(store, monkeypatch, written):
    for step in (1, 2):
        store.write(step, arrays(step), {})

    def killed_half_way(path, **_):
        if (path / ARRAYS).exists():
            (path / ARRAYS).unlink()
            raise KeyboardInterrupt  # not caught by anything, like a kill

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            store.write(written, arrays(written), {})
    for step in store.steps():
        store.read(step)
    store.write(4, arrays(4), {})
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []


def truncate(path):
    (path / ARRAYS).write_bytes((path / ARRAYS).read_bytes()[:-5])


def flip_a_bit(path):
    data = bytearray((path / ARRAYS).read_bytes())
    data[-3] ^= 1
    (path / ARRAYS).write_bytes(data)


def change_a_fact(path):
    text = (path / FACTS).read_text()
    (path / FACTS).write_text(text.replace('"keep": false', '"keep": true'))


def lose_the_checksum(path):
    facts = json.loads((path / FACTS).read_text())
    del facts["facts_sha256"]
    (path / FACTS).write_text(json.dumps(facts))


DAMAGE = {
    "truncated": truncate,
    "flipped bit": flip_a_bit,
    "half JSON": lambda path: (path / FACTS).write_text("{"),
    "changed fact": change_a_fact,
    "no checksum": lose_the_checksum,
    "no dictionary": lambda path: (path / FACTS).write_text("[]"),
    "no arrays": lambda path: (path / ARRAYS).unlink(),
}


# Bugs caught: a damaged checkpoint that is loaded, or hides the good one before it from a resumed run; an older model
# that passes for the newest; a fresh start without a message where all are damaged.
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_reported(store, damage):
    for step in (1, 2):
        store.write(step, arrays(step), {})
    assert store.latest().step == 2
    DAMAGE[damage](store.path(2))
    checkpoint, [problem] = store.newest()
    assert checkpoint.step == 1
    assert "step-000000002 is damaged" in problem
    with pytest.raises(CheckpointError, match=r"step-000000002 is damaged[\s\S]*is of step 1\. To use it"):
        store.latest()
    truncate(store.path(1))
    with pytest.raises(CheckpointError, match="--fresh"):
        store.newest()


# Bug caught: a full disk that takes earlier checkpoints along, or leaves half a file.
def test_a_full_disk_leaves_earlier_checkpoints(store):
    store.write(1, arrays(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            store.write(2, {"large": np.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.newest()[0].step == 1
    assert [path.name for path in store.folder.iterdir()] == ["step-000000001"]


# Bug caught: runs of before facts had a checksum that cannot be resumed.
def test_the_previous_format_is_read(store):
    path = store.write(1, arrays(1), {"position": {"mean": 0.1}})
    facts = json.loads((path / FACTS).read_text())
    del facts["facts_sha256"]
    (path / FACTS).write_text(json.dumps({**facts, "format": 1}))
    assert store.read(1).facts["position"] == {"mean": 0.1}
