"""What an engine is made of: an exported file that is whole, with its weights, of a form that TensorRT takes."""

import onnx
import pytest

from evaluate.backends.onnx_metadata import read_metadata
from export.engine import build_engine
from export.onnx_file import save_model
from export.staging import ExportError
from swav_tf.plumbing.errors import DataError, UsageError
from tests.export.engine_builds import called, edit
from tests.export.spoil import flip_a_weight

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


# Bugs caught: a CPU's graph built into something slow; a traceback for a graph that TensorRT refuses.
def test_int8_of_a_cpu_is_refused(everything, tmp_path, engine_settings):
    path = everything / "model-int8-cpu.onnx"
    with pytest.raises(UsageError, match=r"whose graph is for a CPU.*--target tensorrt"):
        build_engine(path, engine_settings)
    path = edit(path, tmp_path / "model.onnx", called("int8", quantisation={"target": "tensorrt"}))
    with pytest.raises(ExportError, match=r"is not a graph that TensorRT-RTX .* takes: "):
        build_engine(path, engine_settings)


# Bugs caught: weights in a second file that are not found, or not looked at before they are built in.
def test_weights_in_a_second_file(everything, tmp_path, engine_settings, monkeypatch):
    monkeypatch.setattr("export.onnx_file.ONE_FILE_BYTES", 1000)
    model = onnx.load(everything / "model-fp16.onnx")
    facts = read_metadata({entry.key: entry.value for entry in model.metadata_props}, "model")
    path = tmp_path / "model-fp16.onnx"
    save_model(model, facts, path)
    built = build_engine(path, engine_settings)
    assert built.facts.proof.convolutions == {"Half": 6}
    assert len(built.data) > 500_000
    beside = tmp_path / "model-fp16.onnx.data"
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"model-fp16.onnx.data must have the SHA-256"):
        build_engine(path, engine_settings)
    beside.unlink()
    with pytest.raises(DataError, match="needs its weights"):
        build_engine(path, engine_settings)


# Bug caught: a damaged file, built into an engine whose own checksum is then right for ever.
def test_a_damaged_file_is_not_built(exported, engine_settings):
    path = exported / "model-fp16.onnx"
    flip_a_weight(path)
    with pytest.raises(DataError, match="is damaged or another"):
        build_engine(path, engine_settings)
    assert not engine_settings.cache.exists()
