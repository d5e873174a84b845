"""One process at a time: run folders and features, also on file systems without locks."""

import errno
import fcntl
import os

import pytest

from evaluate.features import open_store
from swav_tf.plumbing.errors import UsageError
from swav_tf.runs.folder import RunFolder

HOLDERS = {
    "run folder": RunFolder,
    "features": lambda folder: open_store(folder / "x.npz", {}, 4),
}


# Bugs caught: two writers at once; a lock that outlives its holder; a refusal of the file system that is taken for the
# lock of another process.
@pytest.mark.parametrize("holder", HOLDERS)
def test_one_process_at_a_time(tmp_path, monkeypatch, holder):
    def open_folder():
        with HOLDERS[holder](tmp_path / "out"):
            pass

    with HOLDERS[holder](tmp_path / "out"), pytest.raises(UsageError, match="is in use: process"):
        open_folder()
    open_folder()
    for code in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):

        def refuse(*_, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(UsageError, match=rf"file system with locks.*{os.strerror(code)}.*option flock"):
            open_folder()
