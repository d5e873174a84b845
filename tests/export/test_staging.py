"""The folder that an export is made in, and those that killed exports left."""

import os
import signal

from export.staging import staging_folder


# Bugs caught: a killed export whose files stay on the disk for ever; one that is under way and loses its own.
def test_what_a_killed_export_left_goes_and_a_living_one_stays(tmp_path):
    child = os.fork()
    if child == 0:
        with staging_folder(tmp_path) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    [left] = tmp_path.glob(".part-*")
    with staging_folder(tmp_path) as one:
        assert not left.exists()
        (one / "model.onnx").write_bytes(b"of one that lives")
        with staging_folder(tmp_path) as other:
            assert one != other
        assert (one / "model.onnx").exists()
    assert list(tmp_path.iterdir()) == []
