"""Exported files that changed since their export are refused, files without a record are run."""

import json

import pytest

from evaluate.backends.checksums import PARITY, check_unchanged, read_checksums
from evaluate.backends.onnx_backend import OnnxBackend
from swav_tf.plumbing.errors import DataError
from tests.evaluate.exported import write_onnx


@pytest.fixture
def path(tmp_path):
    write_onnx(tmp_path / "model-fp32.onnx", "fp32", weights="a" * 64)
    return tmp_path / "model-fp32.onnx"


# Bugs caught: a flipped bit anywhere, or a missing end, that only changes the features; an intact file that is refused.
def test_every_byte_counts(path):
    checksum = check_unchanged(path)
    (path.parent / PARITY).write_text(json.dumps({"checksums": {path.name: checksum.model_dump()}}))
    assert OnnxBackend(path).facts.file_sha256 == checksum.sha256
    intact = path.read_bytes()
    for place in (0, 0.3, 0.7, 1):
        data = bytearray(intact)
        data[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"must have the {checksum.bytes:,} bytes .*was not run"):
            OnnxBackend(path)
    path.write_bytes(intact[:-1])
    with pytest.raises(DataError, match=f"Received: {checksum.bytes - 1:,} bytes"):
        OnnxBackend(path)


# Bugs caught: files from other tools or older exports that can no longer be used; a record of another file.
@pytest.mark.parametrize(
    "document",
    [
        None,
        {"files": {"model-fp32.onnx": {"passed": True}}},
        {"checksums": {"other.onnx": {"bytes": 1, "sha256": "0"}}},
    ],
    ids=["no record", "an older export", "another file"],
)
def test_without_a_record_a_file_is_run(path, document):
    if document is not None:
        (path.parent / PARITY).write_text(json.dumps(document))
    assert OnnxBackend(path).outputs == ("features",)


# Bug caught: an unreadable record treated as none.
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"checksums": []}', '{"checksums": {"model-fp32.onnx": "x"}}', "\xff"]
)
def test_an_unreadable_record(path, text):
    (path.parent / PARITY).write_bytes(text.encode("latin-1"))
    for read in (lambda: read_checksums(path.parent), lambda: OnnxBackend(path)):
        with pytest.raises(DataError, match=r"parity.json must be JSON from .*Export again, or remove it"):
            read()


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone.onnx cannot be read: No such file"):
        OnnxBackend(tmp_path / "gone.onnx")
