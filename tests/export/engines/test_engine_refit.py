"""New weights in an old engine, by a TensorRT that is simulated: refitting needs a GPU."""

import dataclasses
from types import SimpleNamespace

import pytest
from onnx import numpy_helper

import export.engine as engine
import export.engine_cache as engine_refit
from evaluate.backends.engine_file import BuilderOptions, read_engine
from export.engine import build_engine
from export.staging import ExportError
from swav_tf.plumbing.errors import UsageError
from tests.export.engine_builds import GPU, edit

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


class FakeRefit:
    """As much of TensorRT as refitting takes; its engine is the ONNX file's own bytes."""

    def __init__(self, missing=()):
        self.missing, self.flags = list(missing), []
        self.SerializationFlag = SimpleNamespace(EXCLUDE_WEIGHTS="exclude", INCLUDE_REFIT="refit")

    def Refitter(self, loaded, logger):  # noqa: N802
        self.loaded = loaded
        return SimpleNamespace(get_missing_weights=lambda: self.missing, refit_cuda_engine=lambda: True)

    def OnnxParserRefitter(self, refitter, logger):  # noqa: N802
        return SimpleNamespace(refit_from_bytes=lambda data, path: self.loaded.update(data) or True)


class FakeLoaded:
    def __init__(self, module):
        self.module, self.data = module, b"old"

    def update(self, data):
        self.data = data

    def create_serialization_config(self):
        flags = self.module.flags
        return SimpleNamespace(
            clear_flag=lambda flag: flags.append(f"-{flag}"), set_flag=lambda flag: flags.append(flag)
        )

    def serialize_with_config(self, config):
        return self.data


def refit(monkeypatch, engine_settings, source, old, *, module):
    here = dataclasses.replace(engine.builder_here("tensorrt_rtx")[0], module=module)
    monkeypatch.setattr(engine, "builder_here", lambda module_name: (here, GPU))
    monkeypatch.setattr(engine, "gpu_or_none", lambda: GPU)
    monkeypatch.setattr(engine_refit, "load_engine", lambda *args, **kwargs: (None, FakeLoaded(module)))
    monkeypatch.setattr(
        engine_refit, "fresh_log", lambda tensorrt: SimpleNamespace(logger=None, told=lambda: "")
    )
    proof = read_engine(old)[1].proof
    monkeypatch.setattr(engine_refit, "prove_loaded", lambda *args: proof)
    return build_engine(source, dataclasses.replace(engine_settings, refit=old))


@pytest.fixture
def old(everything, engine_settings, tmp_path):
    """An engine that says that it can be refitted."""
    built = build_engine(everything / "model-fp16.onnx", engine_settings)
    facts = built.facts.model_copy(update={"options": BuilderOptions(refittable=True)})
    dataclasses.replace(built, facts=facts).place(tmp_path / "old.plan")
    return tmp_path / "old.plan"


def other_weights(model):
    for tensor in model.graph.initializer:
        if tensor.dims:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * values.dtype.type(0.5)), tensor.name))


# Bugs caught: the old weights under a new name, an engine that cannot be refitted a second time, one that is taken for
# a built one of the same file.
def test_refit(everything, engine_settings, tmp_path, monkeypatch, old):
    source = edit(everything / "model-fp16.onnx", tmp_path / "new.onnx", other_weights)
    module = FakeRefit()
    built = refit(monkeypatch, engine_settings, source, old, module=module)
    assert built.data == source.read_bytes()
    assert module.flags == ["-exclude", "refit"]
    assert built.facts.refitted_from == read_engine(old)[1].key
    assert built.facts.options.refittable
    assert built.facts.key != built.facts.refitted_from


# Bugs caught: weights of another network in an engine, weights that are left as they were.
def test_refit_is_refused(everything, int8, engine_settings, tmp_path, monkeypatch, old):
    def refused(source, match, missing=(), plan=old, error=UsageError):
        with monkeypatch.context() as patch, pytest.raises(error, match=match):
            refit(patch, engine_settings, source, plan, module=FakeRefit(missing))

    refused(everything / "model-fp32.onnx", "whose graph is not that of")
    refused(int8 / "model-int8-tensorrt.onnx", "int8 cannot be refitted")
    source = edit(everything / "model-fp16.onnx", tmp_path / "new.onnx", other_weights)
    refused(source, "Without one: conv1.bias", missing=["conv1.bias"], error=ExportError)
    plain = build_engine(everything / "model-fp16.onnx", engine_settings).plan
    refused(source, "built with --refittable", plan=plain)
