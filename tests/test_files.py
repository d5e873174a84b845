"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from cli.errors import message_of
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import atomic_write, atomic_writes, check_writable, remove_leftovers


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.png"
    with atomic_write(path) as partial:
        partial.write_bytes(b"one")
        assert partial.suffix == ".png"  # what writers of pictures go by
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


# Bugs caught: an old picture that a full disk destroys; litter; an error of the caller's that is told as the disk's.
@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            DataError,
            "x.png could not be written: No space left",
        ),
        (ValueError("too wide"), ValueError, "too wide"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_was_there_stays_when_the_new_one_fails(tmp_path, error, told, message):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def half() -> None:
        with atomic_write(path) as partial:
            partial.write_bytes(b"half of the n")
            raise error

    with pytest.raises(told, match=message):
        half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


# Bug caught: litter that stays for ever, or a file of another name that goes with it.
def test_what_a_killed_process_left_is_removed(tmp_path):
    left = []
    for name in ("[x].json", "y.json"):
        with atomic_write(tmp_path / name) as partial:
            partial.write_bytes(b"whole")
        left.append(partial)
    for partial in left:
        partial.write_bytes(b"half of")
    remove_leftovers(tmp_path / "[x].json")
    assert [partial.exists() for partial in left] == [False, True]
    assert (tmp_path / "[x].json").read_bytes() == b"whole"


# Bug caught: a new file beside an old one that it does not belong to.
def test_files_that_belong_together(tmp_path):
    paths = tmp_path / "engine", tmp_path / "facts"
    for path in paths:
        path.write_bytes(b"old")

    def half() -> None:
        with atomic_writes(*paths) as parts:
            parts[0].write_bytes(b"new")
            parts[1].write_bytes(b"half of the n")
            raise OSError(errno.EFBIG, "File too large")

    with pytest.raises(DataError, match="engine could not be written: File too large"):
        half()
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    with atomic_writes(*paths) as parts:
        for part in parts:
            part.write_bytes(b"new")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"new", b"new"]


# Bugs caught: a result that cannot be written after hours of work; a check that leaves files or folders behind.
def test_a_place_is_checked_before_the_work(tmp_path):
    (tmp_path / "there.npz").write_text("kept")
    for good in ("there.npz", "new.npz", "a/b/new.npz", ".", "a/b"):
        check_writable(tmp_path / good)
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_text() == "kept"
    (tmp_path / "link").symlink_to("/proc/none")
    for bad in (Path("/proc/x.npz"), tmp_path / "there.npz" / "x", tmp_path / "link" / "x"):
        with pytest.raises(DataError, match="must be writable"):
            check_writable(bad)


# Bug caught: a full or read-only disk that is told as a mistake of the program's.
@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "Choose a writable location")],
)
def test_a_disk_that_refuses_is_no_surprise(number, told):
    message = message_of(OSError(number, "what the system says", "runs/x"), ["crops"])
    assert message.startswith("runs/x: what the system says. ")
    assert told in message
    assert "not foreseen" not in message


# Bugs caught: a link that becomes a file, and what it leads to keeps what was old; a device that becomes a file.
def test_links_stay_links_and_devices_devices(tmp_path):
    far, link, pipe = tmp_path / "far" / "x.json", tmp_path / "x.json", tmp_path / "pipe"
    far.parent.mkdir()
    far.write_bytes(b"old")
    link.symlink_to(far)
    os.mkfifo(pipe)
    with atomic_write(link) as partial:
        partial.write_bytes(b"new")
    assert link.is_symlink()
    assert far.read_bytes() == b"new"
    with pytest.raises(DataError, match="pipe exists and is not a regular file"), atomic_write(pipe):
        pass
    assert pipe.is_fifo()


# Bugs caught: a file that is there, told as not written, where a file system cannot bring folders to disk; a full disk
# or a broken one that is passed over.
@pytest.mark.parametrize(("number", "matters"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_brought_to_disk(tmp_path, monkeypatch, number, matters):
    path, sync = tmp_path / "x.txt", os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataError, match="could not be written") if matters else contextlib.nullcontext():  # noqa: SIM117
        with atomic_write(path) as partial:
            partial.write_text("all")
    assert path.read_text() == "all"
