"""Exported files that are no longer what was written: refused where that is recorded, and run where it is not."""

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


def record(path):
    checksum = check_unchanged(path)
    document = {"files": {}, "checksums": {path.name: checksum.model_dump()}}
    (path.parent / PARITY).write_text(json.dumps(document))
    return checksum


# Bugs caught: a flipped bit anywhere, or an end that is cut off, that only changes what is computed; a whole file that
# is refused.
@pytest.mark.parametrize("place", [0, 0.3, 0.7, 1])
def test_every_byte_counts(path, place):
    checksum = record(path)
    assert OnnxBackend(path).facts.file_sha256 == checksum.sha256
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=rf"model-fp32.onnx must have the {checksum.bytes:,} bytes .*was not run"
    ):
        OnnxBackend(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"Received: {checksum.bytes - 1:,} bytes"):
        OnnxBackend(path)


# Bugs caught: files of others and of older exports that nobody can use any more; a record of another file.
@pytest.mark.parametrize(
    "document",
    [
        None,
        {"files": {"model-fp32.onnx": {"passed": True}}},
        {"checksums": {"other.onnx": {"bytes": 1, "sha256": "0"}}},
    ],
    ids=["nothing beside it", "of an older export", "of another file"],
)
def test_without_a_record_a_file_is_run(path, document):
    if document is not None:
        (path.parent / PARITY).write_text(json.dumps(document))
    assert OnnxBackend(path).outputs == ("features",)


# Bug caught: a record that cannot be read, taken for none.
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"checksums": []}', '{"checksums": {"model-fp32.onnx": "x"}}', "\xff"]
)
def test_a_record_that_cannot_be_read(path, text):
    (path.parent / PARITY).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"parity.json must be JSON by .*Export again, or remove it"):
        read_checksums(path.parent)
    with pytest.raises(DataError, match=r"parity.json must be JSON"):
        OnnxBackend(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone.onnx cannot be read: No such file"):
        OnnxBackend(tmp_path / "gone.onnx")
