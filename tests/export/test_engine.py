"""Engines by TensorRT-RTX, which builds without a GPU: the code is TensorRT's but for the module. None is run."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

import export.engine as engine
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.backends.engine_file import Batches, BuilderOptions, read_engine, write_engine
from evaluate.backends.onnx_metadata import read_metadata
from evaluate.backends.tensorrt_module import Gpu, NoGpuError, TensorrtLog, find_tensorrt
from export.engine import build_engine, configure
from export.onnx_file import save_model
from export.precision import calibrate, quantize_within, to_int8_tensorrt
from export.settings import EngineSettings
from export.staging import ExportError
from export.verify import verify
from swav_tf.plumbing.errors import DataError, UsageError
from tests.export.edits import edit, edit_facts, flip_a_weight
from tests.tiny_run import tiny_run

pytest.importorskip("tensorrt_rtx")
GPU = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without a GPU."""
    monkeypatch.setitem(sys.modules, "cuda", None)


@pytest.fixture
def settings():
    return EngineSettings(module_name="tensorrt_rtx")


# === Precision ===


# Bugs caught: an engine in float32 that is called fp16 or int8; a file that other programs cannot load because of an
# additional header; wrong facts.
@pytest.mark.parametrize(("name", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("int8-tensorrt", "Int8")])
def test_precision_is_proven(everything, int8, settings, logged, tmp_path, name, kind):
    path = (int8 if "int8" in name else everything) / f"model-{name}.onnx"
    data, facts = build_engine(path, settings)
    assert facts.proof.convolutions == {kind: 6}
    assert facts.proof.source == "the builder's list of layers"
    assert "TensorRT-RTX" in logged[0]
    assert data[:4] == b"vtrt"  # TensorRT-RTX's own first bytes
    write_engine(tmp_path / "x.plan", data, facts)
    assert read_engine(tmp_path / "x.plan") == (data, facts)
    assert facts.metadata(path).precision == name[:4]


# Bug caught: a proof by the name of a file.
@pytest.mark.parametrize(
    ("source", "precision", "message"),
    [
        ("fp32", "fp16", "built 6 of 6 otherwise: .* is Float, not Half"),
        ("fp32", "int8", "is Float, not Int8; and 1 more"),
    ],
)
def test_another_precision_is_refused(everything, tmp_path, settings, source, precision, message):
    facts = {"precision": precision, "quantisation": {"target": "tensorrt"} if precision == "int8" else None}
    path = edit(
        everything / f"model-{source}.onnx", lambda model: edit_facts(model, **facts), tmp_path / "m.onnx"
    )
    with pytest.raises(ExportError, match=message):
        build_engine(path, settings)


# Bugs caught: a search that ignores TensorRT's form of int8; a proof that refuses what the search left in float32.
def test_int8_with_a_convolution_in_float(everything, tmp_path, settings):
    graph = onnx.load(everything / "model-fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)

    def failures(model):
        constants = {tensor.name for tensor in model.graph.initializer}
        kept = any(node.op_type == "Conv" and node.input[1] in constants for node in model.graph.node)
        return [] if kept else ["no convolution is in float32"]

    ranges = calibrate(graph, images)
    quantized, kept = quantize_within(graph, ranges, images, failures_of=failures, quantizer=to_int8_tensorrt)
    assert len(kept) == 1
    edit_facts(quantized, precision="int8", quantisation={"target": "tensorrt", "float32_convolutions": kept})
    path = tmp_path / "model.onnx"
    path.write_bytes(quantized.SerializeToString())
    assert build_engine(path, settings)[1].proof.convolutions == {"Float": 1, "Int8": 5}


# === What is built ===


# Bugs caught: options or a profile that do not reach the builder; TF32, which misses the gate of fp32.
def test_settings_reach_the_builder(everything, settings, monkeypatch):
    from polygraphy.backend.trt import NetworkFromOnnxPath

    path = everything / "model-fp16.onnx"
    options = BuilderOptions(version_compatible=True)
    tensorrt = find_tensorrt("tensorrt_rtx")
    flags = tensorrt.module.BuilderFlag
    with TensorrtLog():
        builder, network, _ = NetworkFromOnnxPath(str(path), strongly_typed=True)()
        config = configure(tensorrt, 32, replace(settings, options=options))(builder, network)
    assert network.get_flag(tensorrt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert (config.get_flag(flags.TF32), config.get_flag(flags.VERSION_COMPATIBLE)) == (False, True)

    logs = []
    made = TensorrtLog.__init__
    monkeypatch.setattr(TensorrtLog, "__init__", lambda log: logs.append(log) or made(log))
    _, facts = build_engine(path, replace(settings, profile=Batches(min=2, opt=3, max=5)))
    assert facts.profile == Batches(min=2, opt=3, max=5)
    assert "MinShape: [2,32,32,3], OptShape: [3,32,32,3], MaxShape: [5,32,32,3]" in logs[0].layers


# Bugs caught: a graph for CPUs built into something slow; a traceback for a graph that TensorRT refuses.
def test_int8_of_a_cpu_is_refused(everything, tmp_path, settings):
    path = everything / "model-int8-cpu.onnx"
    with pytest.raises(UsageError, match=r"a graph for CPUs.*--target tensorrt"):
        build_engine(path, settings)
    facts = {"quantisation": {"target": "tensorrt"}}
    path = edit(path, lambda model: edit_facts(model, **facts), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"is not a graph that TensorRT-RTX .* accepts: .*DequantizeLinear"):
        build_engine(path, settings)


# Bugs caught: a damaged file, built into an engine whose own checksum is then right; weights in a second file that are
# not found or not checked.
def test_a_damaged_file_is_not_built(exported, tmp_path, settings, monkeypatch):
    monkeypatch.setattr("export.onnx_file.ONE_FILE_BYTES", 1000)
    path = exported / "model-fp16.onnx"
    model = onnx.load(path)
    facts = read_metadata({entry.key: entry.value for entry in model.metadata_props}, "model")
    save_model(model, facts, tmp_path / "large.onnx")
    assert build_engine(tmp_path / "large.onnx", settings)[1].proof.convolutions == {"Half": 6}
    weights = tmp_path / "large.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    flip_a_weight(path)
    for file, message in {
        tmp_path / "large.onnx": "large.onnx.data must have the SHA-256",
        path: "is damaged or was replaced",
    }.items():
        with pytest.raises(DataError, match=message):
            build_engine(file, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": BuilderOptions(version_compatible=True)}, "does not have --version-compatible"),
        ({"options": BuilderOptions(hardware_compatible=True)}, "all its engines are"),
        ({"timing_cache": "x"}, "does not have --timing-cache"),
        ({"profile": Batches(min=4, opt=2, max=8)}, "in this order. Received: 4,2,8"),
    ],
)
def test_settings_that_are_refused(everything, settings, changes, message):
    with pytest.raises(UsageError, match=message):
        build_engine(everything / "model-fp16.onnx", replace(settings, **changes))


def test_tensorrt_without_a_gpu(everything, settings, monkeypatch):
    tensorrt = replace(find_tensorrt("tensorrt_rtx"), module_name="tensorrt")
    monkeypatch.setattr(engine, "find_tensorrt", lambda name: tensorrt)
    message = r"on the GPU that will run it.*pip install 'swav-tf\[tensorrt\]'.*--tensorrt rtx"
    with pytest.raises(NoGpuError, match=message):
        build_engine(everything / "model-fp16.onnx", settings)


# === Commands ===


# Bugs caught: an engine that is reported as compared and was not; a sidecar or reference that is left behind.
def test_export_of_an_onnx_file(everything, tmp_path, capsys, monkeypatch):
    for name in ("tensorflow", "keras", "tf2onnx"):  # a GPU server needs none of them
        monkeypatch.setitem(sys.modules, name, None)
    output = tmp_path / "out"
    arguments = ["export", str(everything / "model-fp16.onnx"), "--to", "tensorrt", "--batch", "1,2,4"]
    arguments += ["--tensorrt", "rtx", "--output", str(output)]
    assert run_and_report(swav_tf, [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["engines"]["model-fp16.plan"]
    assert found["builder"].startswith("TensorRT-RTX 1.")
    assert found["proof"]["convolutions"] == {"Half": 6}
    assert "not run, features not compared here" in found["not_compared"]
    names = ["model-fp16.onnx", "model-fp16.plan", "model-fp16.plan.json", "reference.npz"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert run_and_report(swav_tf, arguments) == 0
    assert "6 convolutions in Half" in capsys.readouterr().out

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(everything / "model-fp32.onnx", other / "model-fp16.onnx")
    assert run_and_report(swav_tf, [*arguments[:-1], str(other)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert len(list(other.iterdir())) == 1

    # The ONNX file can be verified here, the engine cannot: that is reported, and is a failure.
    assert run_and_report(swav_tf, ["verify", str(output)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "model-fp16.plan: not run, features not compared: " in out
    assert "passed" in out
    [(precision, parity)] = verify([output / "model-fp16.plan"])[0].values()
    assert (precision, parity.passed) == (None, False)


# Bugs caught: options without effect.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--batch", "1,2,4", "--tensorrt", "rtx"], "--tensorrt: apply to engines"),
        (
            ["--to", "tensorrt", "--precision", "fp16", "--step", "3"],
            "--precision, --step: cannot be applied",
        ),
        (["--to", "tensorrt", "--batch", "0,1,2"], "three numbers of images"),
        (["--to", "engine"], "must be onnx, tensorrt or both. Received: engine"),
        (["--to", "tensorrt", "--tensorrt", "rtx", "--triton", "x"], "Triton serves engines by TensorRT."),
        (["--precision", "fp32", "--calibration-images", "5"], "--calibration-images: applies to int8"),
    ],
)
def test_options_without_effect(everything, tmp_path, capsys, arguments, message):
    model = str(everything / "model-fp16.onnx")
    assert run_and_report(swav_tf, ["export", model, *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


# Bug caught: a missing package that is reported only after the export of a run; or an export that leaves no engine.
def test_export_of_a_run(tmp_path, capsys, monkeypatch):
    arguments = ["export", str(tiny_run()), "--to", "onnx,tensorrt", "--precision", "fp16", "--quiet"]
    arguments += ["--reference-images", "20", "--output"]
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "out"), "--tensorrt", "rtx"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model-fp16.onnx", "model-fp16.plan", "model-fp16.plan.json"} <= names
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "no"), "--tensorrt", "tensorrt"]) == 2
    assert "pip install 'swav-tf[tensorrt]'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# Bug caught: a folder with an engine, although its features are wrong.
def test_an_engine_that_misses_its_gate_is_not_written(everything, tmp_path, settings, monkeypatch):
    data, facts = build_engine(everything / "model-fp16.onnx", settings)
    on_gpu = data, facts.model_copy(update={"gpu": GPU})
    monkeypatch.setattr(engine, "build_engine", lambda path, settings: on_gpu)

    class Backend:
        def __init__(self, plan):
            self.metadata = facts.metadata(plan)
            self.facts = self.metadata.identity(plan, "TensorRT", "")

        def run(self, images):
            return {name: np.ones((len(images), 1)) for name in ("features", "projections", "scores")}

    monkeypatch.setattr(engine, "TensorrtBackend", Backend)
    with pytest.raises(ExportError, match=r"does not reproduce Keras' outputs: .* must have shape"):
        engine.export_engines([everything / "model-fp16.onnx"], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
