"""Files that were damaged after their export: told by every command that would run them."""

import json

import numpy as np
import pytest

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.backends import open_model
from evaluate.backends.checksums import check_unchanged, read_checksums
from swav_tf.plumbing.errors import DataError
from tests.export.edits import flip_a_weight

NAMES = ("model-fp16.onnx", "model-fp32.onnx", "model-int8-cpu.onnx")


# Bugs caught: a precision that nothing is recorded of; a record that is of the file before its last change.
def test_what_an_export_records(everything):
    assert read_checksums(everything) == {name: check_unchanged(everything / name) for name in NAMES}


# Bugs caught: features of a network that nobody trained, without a word; a damage whose checksum `verify` then records.
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_told(exported, tmp_path, capsys, name):
    path = exported / name
    recorded = read_checksums(exported)
    flip_a_weight(path)
    told = f"{name} must have the {recorded[name]} recorded in parity.json"
    with pytest.raises(DataError, match="The file is damaged or another one and was not run"):
        open_model(path)
    for arguments in (
        ["features", "digits", "--split", "test", "--model", str(path), "--output", str(tmp_path / "f.npz")],
        ["benchmark", str(exported), "--json", str(tmp_path / "figures.json")],
    ):
        assert run_and_report(swav_tf, arguments) == 1
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "f.npz").exists()
    assert not (tmp_path / "figures.json").exists()

    assert run_and_report(swav_tf, ["verify", str(exported), "--json"]) == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["passed"] for file in files.values()] == [other != name for other in NAMES]
    assert told in files[name]["failures"][0]
    assert read_checksums(exported) == recorded
    with pytest.raises(DataError, match="is damaged"):
        open_model(path)

    # Without the record it would have been run: that is what the record is for.
    (exported / "parity.json").unlink()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert np.isfinite(open_model(path).run(images)["features"]).all()


# Bugs caught: `verify` of one file that forgets the others; a file of an older export that stays without a record when
# it has been proven; one that failed and is recorded as if it had passed.
def test_verify_keeps_what_is_recorded_and_adds_what_it_proves(exported):
    recorded = read_checksums(exported)
    assert run_and_report(swav_tf, ["verify", str(exported / "model-fp32.onnx")]) == 0
    assert read_checksums(exported) == recorded

    (exported / "parity.json").unlink()
    (exported / "model-fp32.onnx").replace(exported / "model-fp16.onnx")  # passes, whatever it is called
    (exported / "model-int8-cpu.onnx").write_bytes(b"no graph")
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 1
    assert read_checksums(exported) == {"model-fp16.onnx": recorded["model-fp32.onnx"]}
