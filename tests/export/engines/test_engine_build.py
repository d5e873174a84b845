"""Engines by TensorRT-RTX, which builds without a GPU: the code is TensorRT's but for the module. None is run."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import export.engine_build as engine_build
from evaluate.backends.engine_file import Batches, BuilderOptions, read_engine
from evaluate.backends.tensorrt_module import _log
from export.engine import build_engine
from export.int8 import calibrate, quantize_within
from export.int8_tensorrt import to_int8_tensorrt
from export.staging import ExportError
from tests.export.engine_builds import called, edit

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


# Bugs caught: an engine in float32 that is called fp16 or int8; one that another program cannot load because of a
# header of ours; facts that do not say what it is of; a second build where the first would do.
@pytest.mark.parametrize(("name", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("int8-tensorrt", "Int8")])
def test_precision_is_proven(everything, int8, engine_settings, logged, name, kind):
    path = (int8 if "int8" in name else everything) / f"model-{name}.onnx"
    built = build_engine(path, engine_settings)
    assert built.facts.proof.convolutions == {kind: 6}
    assert built.facts.proof.source == "the builder's list of layers"
    assert "TensorRT-RTX" in logged[0]
    assert built.data[:4] == b"vtrt"  # TensorRT-RTX's own first bytes
    assert read_engine(built.plan) == (built.data, built.facts)
    assert built.facts.metadata(path).precision == name[:4]
    again = build_engine(path, engine_settings)
    assert (built.from_cache, again.from_cache) == (False, True)
    assert again.data == built.data
    assert "out of the cache" in logged[-1]


# Bug caught: what an engine is called taken for what it is.
@pytest.mark.parametrize(
    ("source", "precision", "message"),
    [
        ("fp32", "fp16", "made 6 of 6 otherwise: .* is Float, not Half"),
        ("fp16", "fp32", "made 6 of 6 otherwise: .* is Half, not Float"),
        ("fp32", "int8", "is Float, not Int8; and 1 more"),
    ],
)
def test_another_precision_is_refused(everything, tmp_path, engine_settings, source, precision, message):
    quantisation = {"target": "tensorrt"} if precision == "int8" else None
    path = edit(
        everything / f"model-{source}.onnx",
        tmp_path / "model.onnx",
        called(precision, quantisation=quantisation),
    )
    with pytest.raises(ExportError, match=message):
        build_engine(path, engine_settings)
    assert not list(engine_settings.cache.glob("*")) if engine_settings.cache.exists() else True


# Bugs caught: the sweep in the other form of int8; a proof that refuses what the sweep left in float32.
def test_int8_with_a_convolution_in_float(everything, tmp_path, engine_settings):
    graph = onnx.load(everything / "model-fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)

    def acceptable(model):
        constants = {tensor.name for tensor in model.graph.initializer}
        return any(node.op_type == "Conv" and node.input[1] in constants for node in model.graph.node)

    quantised, kept = quantize_within(
        graph,
        calibrate(graph, images, method="minmax"),
        images,
        acceptable=acceptable,
        quantizer=to_int8_tensorrt,
    )
    assert len(kept) == 1
    facts = {"target": "tensorrt", "float32_convolutions": kept}
    called("int8", quantisation=facts)(quantised)
    path = tmp_path / "model.onnx"
    path.write_bytes(quantised.SerializeToString())
    counts = build_engine(path, engine_settings).facts.proof.convolutions
    assert counts == {"Float": 1, "Int8": 5}


# Bug caught: a profile other than asked for, or of the graph's own sizes only.
def test_profile(everything, engine_settings):
    profile = Batches(min=2, opt=3, max=5)
    built = build_engine(
        everything / "model-fp16.onnx", dataclasses.replace(engine_settings, profile=profile)
    )
    assert built.facts.profile == profile
    listing = _log("tensorrt_rtx").listing
    assert "MinShape: [2,32,32,3], OptShape: [3,32,32,3], MaxShape: [5,32,32,3]" in listing


# Bugs caught: an option that is passed over without a word; one that decides what is built and not which file is taken.
def test_options_reach_the_builder(everything, engine_settings):
    path = everything / "model-fp16.onnx"
    with pytest.raises(ExportError, match="within workspace limit"):
        build_engine(
            path,
            dataclasses.replace(engine_settings, options=BuilderOptions(workspace_gib=2**-10)),
        )
    config = SimpleNamespace(flags=[], pools={})
    config.set_flag = config.flags.append
    config.set_memory_pool_limit = config.pools.__setitem__
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="version", REFIT="refit"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
    )
    options = BuilderOptions(
        workspace_gib=1.5, builder_level=4, version_compatible=True, hardware_compatible=True, refittable=True
    )
    engine_build._set_options(config, options, trt)
    assert (config.flags, config.pools) == (["version", "refit"], {"workspace": 3 * 2**29})
    assert (config.builder_optimization_level, config.hardware_compatibility_level) == (4, "ampere")
