"""The folder that an export is made in, and those that killed exports left."""

import os
import signal

import pytest

import export.staging
from export.staging import filled_folder
from swav_tf.plumbing.errors import UsageError


# Bugs caught: a killed export whose files stay on the disk for ever; one that is under way and loses its own.
@pytest.mark.multiprocess
def test_what_a_killed_export_left_goes_and_a_living_one_stays(tmp_path):
    child = os.fork()
    if child == 0:
        with filled_folder(tmp_path) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    [left] = tmp_path.glob(".part-*")
    with filled_folder(tmp_path) as one:
        assert not left.exists()
        (one / "model.onnx").write_bytes(b"of one that lives")
        with pytest.raises(UsageError, match="is in use: another process"), filled_folder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# Bugs caught: a graph that a server opens before its weights exist, or a model before its graph.
def test_what_is_read_first_is_there_last(tmp_path, monkeypatch):
    order = []
    replace = os.replace

    def recorded(source, target):
        order.append(str(target.relative_to(tmp_path)))
        replace(source, target)

    monkeypatch.setattr(export.staging.os, "replace", recorded)
    with filled_folder(tmp_path) as folder:
        for name in ("one/1/model.onnx", "one/1/model.onnx.data", "one/config.pbtxt", "one/labels.txt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    assert order == ["one/1/model.onnx.data", "one/labels.txt", "one/1/model.onnx", "one/config.pbtxt"]
    assert all((tmp_path / name).read_text() == name for name in order)
