"""From exported files to engines beside them, by the command line, and on a GPU that is simulated."""

import json
import shutil
import sys
from types import SimpleNamespace

import onnx
import pytest

import export.engine as engine
import export.engine_build as engine_build
import export.run_engines as run_engines
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.backends.engine_file import read_engine
from evaluate.backends.onnx_backend import OnnxBackend
from export.engine import build_engine
from export.run_engines import export_engines
from export.staging import ExportError
from export.verify import verify
from tests.export.engine_builds import GPU
from tests.tiny_run import tiny_run

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


# Bugs caught: an engine that is said to be compared and was not; a sidecar or reference that is left behind.
def test_export_of_an_onnx_file(everything, tmp_path, capsys, monkeypatch):
    for name in ("tensorflow", "keras", "tf2onnx"):  # a GPU server needs none of them
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["export", str(everything / "model-fp16.onnx"), "--to", "tensorrt", "--batch", "1,2,4"]
    arguments += [
        "--tensorrt",
        "rtx",
        "--engine-cache",
        str(tmp_path / "cache"),
        "--output",
        str(tmp_path / "out"),
    ]
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
    assert run_and_report(swav_tf, ["export", model, *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


# Bug caught: what is missing told only after the export of a whole run; or an export that leaves no engine.
def test_export_of_a_run(tmp_path, capsys, monkeypatch):
    arguments = ["export", str(tiny_run()), "--to", "onnx,tensorrt", "--precision", "fp16", "--quiet"]
    arguments += ["--reference-images", "20", "--engine-cache", str(tmp_path / "cache"), "--output"]
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model-fp16.plan.json").is_file()
    assert {"model-fp16.onnx", "model-fp16.plan"} <= {path.name for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run_and_report(swav_tf, [*arguments, str(tmp_path / "no"), "--tensorrt", "tensorrt"]) == 2
    assert "pip install 'swav-tf[tensorrt]'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# Bug caught: a library's call for the same, that stops at the first engine.
def test_verify_of_an_engine_alone(everything, tmp_path, engine_settings):
    built = build_engine(everything / "model-fp16.onnx", engine_settings)
    built.place(tmp_path / "model-fp16.plan")
    shutil.copy(everything / "reference.npz", tmp_path)
    [(precision, parity)] = verify([tmp_path / "model-fp16.plan"]).values()
    assert precision is None
    assert not parity.passed
    assert parity.failures[0].startswith("not run, features not compared: ")


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

    def use(kind, change=lambda values: values):
        monkeypatch.setattr(engine, "builder_here", lambda module_name: (here, GPU))
        path = everything / "model-fp16.onnx"
        monkeypatch.setattr(engine_build, "load_engine", lambda *a, **k: (None, FakeInspected(path, kind)))

        class Runner(OnnxBackend):
            def __init__(self, plan):
                super().__init__(path)
                assert read_engine(plan)[1].onnx == path.name

            def run(self, images):
                return {name: change(values) for name, values in super().run(images).items()}

        monkeypatch.setattr(run_engines, "TensorrtBackend", Runner)
        return path

    return use


# Bugs caught: an engine that got its name before it was compared, or although it computes something else; a proof that
# does not ask the inspector where it could.
def test_with_a_gpu_engines_are_compared(everything, tmp_path, engine_settings, on_a_gpu):
    source = on_a_gpu("Half")
    [made] = export_engines([source], tmp_path / "out", engine_settings)
    assert made.parity.passed
    assert made.parity.images == 96
    assert (made.not_compared, made.facts.proof.source) == ("", "engine inspector")
    assert made.facts.gpu.name == "NVIDIA L4"

    on_a_gpu("Half", lambda values: values[:, ::-1])
    with pytest.raises(ExportError, match="does not compute what Keras computes: cosine of every image"):
        export_engines([source], tmp_path / "wrong", engine_settings)
    assert not (tmp_path / "wrong").exists()

    alone = shutil.copy(source, tmp_path / "model-fp16.onnx")
    [made] = export_engines([alone], tmp_path / "out", engine_settings)
    assert made.not_compared == "features not compared: no reference.npz beside the ONNX file"


def test_with_a_gpu_the_inspector_decides(tmp_path, engine_settings, on_a_gpu):
    source = on_a_gpu("Float")
    with pytest.raises(ExportError, match=r"6 of 6 otherwise: .* is Float, not Half"):
        export_engines([source], tmp_path / "out", engine_settings)
    assert not engine_settings.cache.exists()
