"""One process at a time: taken, free, and file systems that have no locks."""

import errno
import fcntl
import os

import pytest

from evaluate.feature_store import open_store
from swav_tf.data import sharding
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import take_lock
from swav_tf.runs.folder import RunFolder

HOLDERS = {
    "run folder": RunFolder,
    "shards": sharding.locked,
    "features": lambda folder: open_store(folder / "x.npz", {}, 4),
}


def test_one_holds_it_until_the_file_is_closed(tmp_path):
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert take_lock(first, tmp_path)
        assert not take_lock(second, tmp_path)
        first.close()
        assert take_lock(second, tmp_path)


# Bug caught: every refusal taken for another process's lock, so that one waits for nobody.
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, holder, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UsageError, match=rf"file system with locks.*{os.strerror(code)}.*option flock"),
        HOLDERS[holder](tmp_path / "out"),
    ):
        raise AssertionError("it was opened without a lock")


@pytest.mark.parametrize("holder", HOLDERS)
def test_another_process_is_told(tmp_path, holder):
    with (
        HOLDERS[holder](tmp_path / "out"),
        pytest.raises(UsageError, match="Only one process may write"),
        HOLDERS[holder](tmp_path / "out"),
    ):
        raise AssertionError("two have it")
