"""Engines by TensorRT-RTX, which builds without a GPU: the code is TensorRT's but for the module. None is run."""

import dataclasses
import json
import re
import resource
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export.run_engines as run_engines
import export.tensorrt_engine as engine
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.runners.engine_file import Batches, BuilderOptions, read_engine, sidecar_of
from evaluate.runners.onnx_metadata import KEY, read_metadata
from evaluate.runners.onnx_runner import OnnxRunner
from evaluate.runners.tensorrt_module import Gpu, NoGpuError, _log, fresh_log
from export.errors import ExportError
from export.graph_rules import operators
from export.onnx_file import save_model
from export.quantize import calibrate, quantise_within
from export.quantize_tensorrt import to_int8_tensorrt
from export.run_engines import export_engines
from export.run_export import ExportSettings, export_run
from export.tensorrt_engine import EngineSettings, build_engine
from export.verify import verify
from swav_tf.errors import DataError, UsageError
from tests.tiny_run import tiny_run

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without, whatever this one has."""
    monkeypatch.setattr(engine, "gpu_or_none", lambda: None)


@pytest.fixture(scope="session")
def int8(tmp_path_factory):
    """The tiny run in TensorRT's int8; to be left as it is."""
    folder = tmp_path_factory.mktemp("int8")
    settings = ExportSettings(
        precisions=("int8",), target="tensorrt", reference_images=80, calibration_images=48
    )
    export_run(tiny_run(), folder, settings, tell=silent)
    return folder


@pytest.fixture
def settings(tmp_path):
    return EngineSettings(module_name="tensorrt_rtx", cache=tmp_path / "cache")


def silent(line):
    pass


def edit(source, target, change):
    """A changed copy of a model."""
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def called(precision, **facts):
    """Says in a model's metadata that it is of this precision."""

    def change(model):
        [entry] = [entry for entry in model.metadata_props if entry.key == KEY]
        entry.value = json.dumps({**json.loads(entry.value), "precision": precision, **facts})

    return change


# === Precision ===


# Bugs caught: an engine in float32 that is called fp16 or int8; one that another program cannot load because of a
# header of ours; facts that do not say what it is of; a second build where the first would do.
@pytest.mark.parametrize(("name", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("int8-tensorrt", "Int8")])
def test_precision_is_proven(everything, int8, settings, name, kind):
    path = (int8 if "int8" in name else everything) / f"model-{name}.onnx"
    lines = []
    built = build_engine(path, settings, tell=lines.append)
    assert built.facts.proof.convolutions == {kind: 6}
    assert built.facts.proof.source == "the builder's list of layers"
    assert "TensorRT-RTX" in lines[0]
    assert built.data[:4] == b"vtrt"  # TensorRT-RTX's own first bytes
    assert read_engine(built.plan) == (built.data, built.facts)
    assert built.facts.metadata(path).precision == name[:4]
    again = build_engine(path, settings, tell=lines.append)
    assert (built.from_cache, again.from_cache) == (False, True)
    assert again.data == built.data
    assert "out of the cache" in lines[-1]


# Bug caught: what an engine is called taken for what it is.
@pytest.mark.parametrize(
    ("source", "precision", "message"),
    [
        ("fp32", "fp16", "made 6 of 6 otherwise: .* is Float, not Half"),
        ("fp16", "fp32", "made 6 of 6 otherwise: .* is Half, not Float"),
        ("fp32", "int8", "is Float, not Int8; and 1 more"),
    ],
)
def test_another_precision_is_refused(everything, tmp_path, settings, source, precision, message):
    quantisation = {"target": "tensorrt"} if precision == "int8" else None
    path = edit(
        everything / f"model-{source}.onnx",
        tmp_path / "model.onnx",
        called(precision, quantisation=quantisation),
    )
    with pytest.raises(ExportError, match=message):
        build_engine(path, settings, tell=silent)
    assert not list(settings.cache.glob("*")) if settings.cache.exists() else True


# === int8 ===


# Bugs caught: zero points that TensorRT refuses, one scale for all channels, int32 biases, a residual sum whose
# shortcut is not quantised, weights that are not those of the network.
def test_int8_for_tensorrt(everything, int8):
    exact, model = (
        onnx.load(everything / "model-fp32.onnx"),
        onnx.load(int8 / "model-int8-tensorrt.onnx"),
    )
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    weights = {
        node.name: numpy_helper.to_array(tensor)
        for node in exact.graph.node
        for tensor in exact.graph.initializer
        if node.op_type == "Conv" and tensor.name == node.input[1]
    }
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
        if node.op_type == "Conv":
            activation, weight = maker[node.input[0]], maker[node.input[1]]
            assert maker[activation.input[0]].op_type == "QuantizeLinear"
            stored, scales = values[weight.input[0]], values[weight.input[1]]
            assert (stored.dtype, len(scales)) == (np.int8, len(stored))
            assert values[node.input[2]].dtype == np.float32
            wanted = weights[node.name].astype(np.float64)
            scales = scales.astype(np.float64).reshape(-1, 1, 1, 1)
            assert np.all(np.abs(stored * scales - wanted) <= 0.5001 * scales)
            assert np.abs(stored).reshape(len(stored), -1).max(axis=1).tolist() == [127] * len(stored)
    sums = [node for node in model.graph.node if node.op_type == "Add" and "_add" in node.name]
    operands = [{maker[name].op_type for name in node.input} for node in sums]
    assert operands == [{"DequantizeLinear", "Conv"}] * 2
    # A tensor that two convolutions read has one pair.
    assert operators(model)["QuantizeLinear"] == 6


# Bugs caught: the sweep in the other form of int8; a proof that refuses what the sweep left in float32.
def test_int8_with_a_convolution_in_float(everything, tmp_path, settings):
    graph = onnx.load(everything / "model-fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)

    def acceptable(model):
        constants = {tensor.name for tensor in model.graph.initializer}
        return any(node.op_type == "Conv" and node.input[1] in constants for node in model.graph.node)

    quantised, kept = quantise_within(
        graph,
        calibrate(graph, images, method="minmax"),
        images,
        acceptable=acceptable,
        tell=silent,
        quantise=to_int8_tensorrt,
    )
    assert len(kept) == 1
    facts = {"target": "tensorrt", "float32_convolutions": kept}
    called("int8", quantisation=facts)(quantised)
    path = tmp_path / "model.onnx"
    path.write_bytes(quantised.SerializeToString())
    counts = build_engine(path, settings, tell=silent).facts.proof.convolutions
    assert counts == {"Float": 1, "Int8": 5}


# Bugs caught: a CPU's graph built into something slow; a traceback for a graph that TensorRT refuses.
def test_int8_of_a_cpu_is_refused(everything, tmp_path, settings):
    path = everything / "model-int8-cpu.onnx"
    with pytest.raises(UsageError, match=r"whose graph is for a CPU.*--target tensorrt"):
        build_engine(path, settings, tell=silent)
    path = edit(path, tmp_path / "model.onnx", called("int8", quantisation={"target": "tensorrt"}))
    with pytest.raises(ExportError, match=r"is not a graph that TensorRT-RTX .* takes: "):
        build_engine(path, settings, tell=silent)


# === The builder ===


# Bugs caught: weights in a second file that are not found, or not looked at before they are built in.
def test_weights_in_a_second_file(everything, tmp_path, settings, monkeypatch):
    monkeypatch.setattr("export.onnx_file.ONE_FILE_BYTES", 1000)
    model = onnx.load(everything / "model-fp16.onnx")
    facts = read_metadata({entry.key: entry.value for entry in model.metadata_props}, "model")
    path = tmp_path / "model-fp16.onnx"
    save_model(model, facts, path)
    built = build_engine(path, settings, tell=silent)
    assert built.facts.proof.convolutions == {"Half": 6}
    assert len(built.data) > 500_000
    beside = tmp_path / "model-fp16.onnx.data"
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="must hold the weights of"):
        build_engine(path, settings, tell=silent)
    beside.unlink()
    with pytest.raises(DataError, match="needs its weights"):
        build_engine(path, settings, tell=silent)


# Bug caught: a profile other than asked for, or of the graph's own sizes only.
def test_profile(everything, settings):
    profile = Batches(min=2, opt=3, max=5)
    built = build_engine(
        everything / "model-fp16.onnx", dataclasses.replace(settings, profile=profile), tell=silent
    )
    assert built.facts.profile == profile
    listing = _log("tensorrt_rtx").listing
    assert "MinShape: [2,32,32,3], OptShape: [3,32,32,3], MaxShape: [5,32,32,3]" in listing


# Bugs caught: an option that is passed over without a word; one that decides what is built and not which file is taken.
def test_options_reach_the_builder(everything, settings):
    path = everything / "model-fp16.onnx"
    with pytest.raises(ExportError, match="within workspace limit"):
        build_engine(
            path,
            dataclasses.replace(settings, options=BuilderOptions(workspace_gib=2**-10)),
            tell=silent,
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
    engine._set_options(config, options, trt)
    assert (config.flags, config.pools) == (["version", "refit"], {"workspace": 3 * 2**29})
    assert (config.builder_optimization_level, config.hardware_compatibility_level) == (4, "ampere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": BuilderOptions(version_compatible=True)}, "has not: --version-compatible"),
        ({"options": BuilderOptions(hardware_compatible=True)}, "every engine of TensorRT-RTX is"),
        ({"options": BuilderOptions(refittable=True)}, "--refittable and --refit need a GPU"),
        ({"timing_cache": "x"}, "has not: --timing-cache"),
        ({"profile": Batches(min=4, opt=2, max=8)}, "in this order. Received: 4,2,8"),
        ({"options": BuilderOptions(builder_level=6)}, "0 to 5. Received: 6"),
        ({"options": BuilderOptions(workspace_gib=0)}, "greater than 0. Received: 0"),
        ({"refit": "old.plan", "profile": Batches(min=1, opt=1, max=1)}, "options of a builder"),
    ],
)
def test_options_that_cannot_be_honoured(everything, settings, changes, message):
    with pytest.raises(UsageError, match=message):
        build_engine(everything / "model-fp16.onnx", dataclasses.replace(settings, **changes), tell=silent)


# === The cache ===


# Bug caught: an engine of another graph, profile, option, version, GPU or driver, taken out of the cache.
def test_what_decides_the_key(everything, settings, monkeypatch):
    path, keys = everything / "model-fp16.onnx", []
    here, _ = engine.builder_here("tensorrt_rtx")
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")
    # Only the name of the file is asked for.
    monkeypatch.setattr(engine, "_from_cache", lambda plan, *_: keys.append(plan.stem) or SimpleNamespace())

    def key_of(path=path, tensorrt=here, gpu=None, **changes):
        monkeypatch.setattr(engine, "builder_here", lambda module_name: (tensorrt, gpu))
        build_engine(path, dataclasses.replace(settings, **changes), tell=silent)
        return keys[-1]

    first = key_of()
    others = [
        key_of(everything / "model-fp32.onnx"),
        key_of(profile=Batches(min=1, opt=8, max=33)),
        key_of(options=BuilderOptions(workspace_gib=4)),
        key_of(options=BuilderOptions(builder_level=3)),
        key_of(tensorrt=dataclasses.replace(here, version="1.7.2")),
        key_of(gpu=gpu),
        key_of(gpu=gpu.model_copy(update={"driver": "580.1"})),
        key_of(gpu=gpu.model_copy(update={"compute_capability": "9.0"})),
        key_of(gpu=gpu.model_copy(update={"name": "NVIDIA L40"})),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert key_of() == first


# Bugs caught: an engine that is damaged or foreign, run out of the cache; one that is never built again; silence.
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-1]), "damaged, or another engine"),
        (lambda plan: sidecar_of(plan).unlink(), "no .*plan.json"),
        (
            lambda plan: sidecar_of(plan).write_text(
                sidecar_of(plan).read_text().replace('"version": "1.', '"version": "9.')
            ),
            "it was built by TensorRT-RTX 9",
        ),
        (
            lambda plan: sidecar_of(plan).write_text(
                sidecar_of(plan).read_text().replace('"key": "', '"key": "f')
            ),
            "its key is another",
        ),
    ],
)
def test_a_mismatch_is_told_and_rebuilt(everything, settings, spoil, told):
    path = everything / "model-fp16.onnx"
    built = build_engine(path, settings, tell=silent)
    spoil(built.plan)
    lines = []
    again = build_engine(path, settings, tell=lines.append)
    assert not again.from_cache
    assert "built anew" in lines[0]
    assert re.search(told, lines[0])
    assert build_engine(path, settings, tell=silent).from_cache


# Bug caught: half an engine in the cache on a full disk.
def test_a_full_disk_leaves_no_half_engine(everything, settings):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="could not be written"):
            build_engine(everything / "model-fp16.onnx", settings, tell=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(settings.cache.iterdir()) == []


# Bugs caught: a timing cache that is never written, or one of another GPU that is used.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX has the calls, and needs none
def test_timing_cache(settings, tmp_path):
    import tensorrt_rtx

    log = fresh_log(engine.builder_here("tensorrt_rtx")[0])
    config = tensorrt_rtx.Builder(log.logger).create_builder_config()
    path = tmp_path / "deep" / "timings"
    engine.read_timing_cache(config, path)
    engine.write_timing_cache(config, path)
    assert path.stat().st_size > 0
    engine.read_timing_cache(config, path)
    foreign = SimpleNamespace(
        create_timing_cache=lambda data: data, set_timing_cache=lambda cache, ignore_mismatch: ignore_mismatch
    )
    with pytest.raises(DataError, match="of another or damaged"):
        engine.read_timing_cache(foreign, path)


# === What is missing ===


def test_tensorrt_without_a_gpu(everything, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.0.1"))
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(
        NoGpuError,
        match=r"on the GPU that will run it.*pip install 'swav-tf\[tensorrt\]'.*--tensorrt rtx",
    ):
        build_engine(
            everything / "model-fp16.onnx",
            dataclasses.replace(settings, module_name="tensorrt"),
            tell=silent,
        )
    assert not settings.cache.exists()


# === Refitting ===


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


def refit(monkeypatch, settings, source, old, *, module):
    here = dataclasses.replace(engine.builder_here("tensorrt_rtx")[0], module=module)
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")
    monkeypatch.setattr(engine, "builder_here", lambda module_name: (here, gpu))
    monkeypatch.setattr(engine, "gpu_or_none", lambda: gpu)
    monkeypatch.setattr(engine, "load_engine", lambda *args, **kwargs: (None, FakeLoaded(module)))
    monkeypatch.setattr(engine, "fresh_log", lambda tensorrt: SimpleNamespace(logger=None, told=lambda: ""))
    proof = read_engine(old)[1].proof
    monkeypatch.setattr(engine, "_inspect", lambda *args: proof)
    return build_engine(source, dataclasses.replace(settings, refit=old), tell=silent)


@pytest.fixture
def old(everything, settings, tmp_path):
    """An engine that says that it can be refitted."""
    built = build_engine(everything / "model-fp16.onnx", settings, tell=silent)
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
def test_refit(everything, settings, tmp_path, monkeypatch, old):
    source = edit(everything / "model-fp16.onnx", tmp_path / "new.onnx", other_weights)
    module = FakeRefit()
    built = refit(monkeypatch, settings, source, old, module=module)
    assert built.data == source.read_bytes()
    assert module.flags == ["-exclude", "refit"]
    assert built.facts.refitted_from == read_engine(old)[1].key
    assert built.facts.options.refittable
    assert built.facts.key != built.facts.refitted_from


# Bugs caught: weights of another network in an engine, weights that are left as they were.
def test_refit_is_refused(everything, int8, settings, tmp_path, monkeypatch, old):
    def refused(source, match, missing=(), plan=old, error=UsageError):
        with monkeypatch.context() as patch, pytest.raises(error, match=match):
            refit(patch, settings, source, plan, module=FakeRefit(missing))

    refused(everything / "model-fp32.onnx", "whose graph is not that of")
    refused(int8 / "model-int8-tensorrt.onnx", "int8 cannot be refitted")
    source = edit(everything / "model-fp16.onnx", tmp_path / "new.onnx", other_weights)
    refused(source, "Without one: conv1.bias", missing=["conv1.bias"], error=ExportError)
    plain = build_engine(everything / "model-fp16.onnx", settings, tell=silent).plan
    refused(source, "built with --refittable", plan=plain)


# === The command line ===


# Bugs caught: an engine that is said to be compared and was not; a sidecar or reference that is left behind.
def test_export_of_an_onnx_file(everything, tmp_path, capsys, monkeypatch):
    for name in ("tensorflow", "keras", "tf2onnx"):  # a GPU server needs none of them
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["export", str(everything / "model-fp16.onnx"), "--to", "tensorrt", "--batch", "1,2,4"]
    arguments += ["--tensorrt", "rtx", "--engine-cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    assert run_and_report(swav_tf, [*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["engines"]["model-fp16.plan"]
    assert told["builder"].startswith("TensorRT-RTX 1.")
    assert told["proof"]["convolutions"] == {"Half": 6}
    assert "not run, features not compared here" in told["not_compared"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model-fp16.plan",
        "model-fp16.plan.json",
        "reference.npz",
    ]
    assert run_and_report(swav_tf, arguments) == 0
    assert "6 convolutions in Half" in capsys.readouterr().out

    # The ONNX file can be verified here, the engine cannot: that is said, and is no success.
    shutil.copy(everything / "model-fp16.onnx", tmp_path / "out")
    assert run_and_report(swav_tf, ["verify", str(tmp_path / "out")]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "model-fp16.plan: not run, features not compared: " in out
    assert "passed" in out


# Bugs caught: options that are passed over.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--batch", "1,2,4", "--refit", "x.plan"], "--batch, --refit: for engines"),
        (["--to", "tensorrt", "--precision", "fp16", "--step", "3"], "--precision, --step: for a run"),
        (["--to", "tensorrt", "--batch", "1,2"], "three numbers of images"),
        (["--to", "tensorrt", "--batch", "0,1,2"], "three numbers of images"),
        (["--to", "engine"], "must be of onnx, tensorrt. Received: engine"),
    ],
)
def test_options_in_vain(everything, tmp_path, capsys, arguments, message):
    model = str(everything / "model-fp16.onnx")
    assert run_and_report(swav_tf, ["export", model, *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


# Bug caught: what is missing told only after the export of a whole run; or an export that leaves no engine.
def test_export_of_a_run(tmp_path, capsys, monkeypatch):
    arguments = ["export", str(tiny_run()), "--to", "onnx,tensorrt", "--precision", "fp16", "--quiet"]
    arguments += ["--reference-images", "20", "--engine-cache", str(tmp_path / "cache"), "-o"]
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model-fp16.plan.json").is_file()
    assert {"model-fp16.onnx", "model-fp16.plan"} <= {path.name for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "no"), "--tensorrt", "tensorrt"]) == 2
    assert "pip install 'swav-tf[tensorrt]'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# Bug caught: a library's call for the same, that stops at the first engine.
def test_verify_of_an_engine_alone(everything, tmp_path, settings):
    built = build_engine(everything / "model-fp16.onnx", settings, tell=silent)
    built.place(tmp_path / "model-fp16.plan")
    shutil.copy(everything / "reference.npz", tmp_path)
    [(precision, parity)] = verify([tmp_path / "model-fp16.plan"]).values()
    assert precision is None
    assert not parity.passed
    assert parity.failures[0].startswith("not run, features not compared: ")


# === With a GPU: what happens around TensorRT; the engine itself is not run ===


class FakeInspected:
    """An engine whose inspector lists convolutions of one type."""

    def __init__(self, path, kind):
        tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": kind}
        names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
        self.layers = [
            {
                "Name": name,
                "LayerType": "CaskConvolution",
                "Inputs": [tensor],
                "Weights": {"Type": kind},
                "Metadata": f"[ONNX Layer: {name}]",
            }
            for name in names
        ]

    def create_engine_inspector(self):
        return SimpleNamespace(
            get_engine_information=lambda form: json.dumps({"Layers": self.layers, "Bindings": []})
        )


@pytest.fixture
def on_a_gpu(everything, monkeypatch):
    """Builds by TensorRT-RTX, but the engine is loaded and run by what is given."""
    here, _ = engine.builder_here("tensorrt_rtx")
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")

    def use(kind, change=lambda values: values):
        monkeypatch.setattr(engine, "builder_here", lambda module_name: (here, gpu))
        path = everything / "model-fp16.onnx"
        monkeypatch.setattr(engine, "load_engine", lambda *a, **k: (None, FakeInspected(path, kind)))

        class Runner(OnnxRunner):
            def __init__(self, plan):
                super().__init__(path)
                assert read_engine(plan)[1].onnx == path.name

            def run(self, images):
                return {name: change(values) for name, values in super().run(images).items()}

        monkeypatch.setattr(run_engines, "TensorrtRunner", Runner)
        return path

    return use


# Bugs caught: an engine that got its name before it was compared, or although it computes something else; a proof that
# does not ask the inspector where it could.
def test_with_a_gpu_engines_are_compared(everything, tmp_path, settings, on_a_gpu):
    source = on_a_gpu("Half")
    [made] = export_engines([source], tmp_path / "out", settings, tell=silent)
    assert made.parity.passed
    assert made.parity.images == 96
    assert (made.not_compared, made.facts.proof.source) == ("", "engine inspector")
    assert made.facts.gpu.name == "NVIDIA L4"

    on_a_gpu("Half", lambda values: values[:, ::-1])
    with pytest.raises(ExportError, match="does not compute what Keras computes: cosine of every image"):
        export_engines([source], tmp_path / "wrong", settings, tell=silent)
    assert not (tmp_path / "wrong").exists()

    alone = shutil.copy(source, tmp_path / "model-fp16.onnx")
    [made] = export_engines([alone], tmp_path / "out", settings, tell=silent)
    assert made.not_compared == "features not compared: no reference.npz beside the ONNX file"


def test_with_a_gpu_the_inspector_decides(tmp_path, settings, on_a_gpu):
    source = on_a_gpu("Float")
    with pytest.raises(ExportError, match=r"6 of 6 otherwise: .* is Float, not Half"):
        export_engines([source], tmp_path / "out", settings, tell=silent)
    assert not settings.cache.exists()
