"""Exports from end to end: files, metadata, and that a failure leaves nothing behind."""

import json
import resource

import numpy as np
import onnx
import pytest

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.images import open_images, stack_views, view_images
from evaluate.onnx_metadata import KEY
from evaluate.runners import open_runner
from export.errors import ExportError
from export.images import draw_images
from export.reference import read_reference
from export.run_export import ExportSettings, export_run
from swav_tf.errors import DataError, UsageError
from swav_tf.recipe import Data
from tests.evaluate.models import make_class_folders
from tests.tiny_run import tiny_run


def silent(line):
    pass


# Bugs caught: a preprocessing that differs from training's, metadata of another checkpoint, a file called int8 or fp16
# that is as large as fp32.
def test_files_and_their_runner(everything):
    assert sorted(path.name for path in everything.iterdir()) == [
        "model-fp16.onnx",
        "model-fp32.onnx",
        "model-int8-cpu.onnx",
        "parity.json",
        "reference.npz",
    ]
    sizes = {path.stem: path.stat().st_size for path in everything.glob("*.onnx")}
    assert sizes["model-fp16"] < 0.6 * sizes["model-fp32"]
    assert sizes["model-int8-cpu"] < 0.4 * sizes["model-fp32"]

    keras, ours = open_runner(tiny_run()), open_runner(everything / "model-fp32.onnx", threads=1)
    images = open_images("digits", like=keras.data, split="test")
    views = stack_views(list(view_images(images.source, range(5), ours.view)))
    assert (ours.view, ours.data, ours.feature_dim) == (keras.view, keras.data, keras.feature_dim)
    wanted, found = keras.run(views), ours.run(views)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max())
    same = {**keras.facts.as_dict(), "path": "", "runner": ""}
    assert {**ours.facts.as_dict(), "path": "", "runner": ""} == same
    assert ours.facts.runner == "onnxruntime cpu fp32"


# Bugs caught: metadata that a server cannot read without us, calibration that is not recorded, calibrating on the very
# images that are compared.
def test_metadata(everything):
    model = onnx.load(everything / "model-int8-cpu.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    how = json.loads(found["preprocessing"])
    assert (how["resize"], how["crop"], how["inside"], how["layout"]) == (32, 32, True, "NHWC")
    assert (how["interpolation"], how["mean"], how["std"]) == (
        "bilinear, antialiased",
        [0.485, 0.456, 0.406],
        [0.228, 0.224, 0.225],
    )
    all_of_it = json.loads(found[KEY])
    assert (found["recipe"], found["step"], found["precision"]) == ("tiny", "11", "int8")
    assert {"onnx", "tf2onnx", "onnxruntime", "tensorflow"} <= all_of_it["versions"].keys()
    calibration = all_of_it["quantisation"]
    assert (calibration["images"], calibration["seed"], calibration["calibration"]) == (48, 0, "minmax")
    assert (
        calibration["names_sha256"]
        != read_reference(everything / "reference.npz").facts["real"]["names_sha256"]
    )


# Bugs caught: two draws that share images, another draw for the same seed, labels of other images.
def test_draws():
    images = open_images("digits", like=Data(kind="digits"))
    view = open_runner(tiny_run()).view
    draws = [draw_images(images, (30, 20), view, seed=4, max_bad_share=0) for _ in range(2)]
    first, second = draws[0]
    assert (len(first.views), len(second.views)) == (30, 20)
    assert not {view.tobytes() for view in first.views} & {view.tobytes() for view in second.views}
    assert first.names_sha256 == draws[1][0].names_sha256 != second.names_sha256
    where = {
        shown.view.tobytes(): shown.label
        for shown in view_images(images.source, range(len(images.source)), view)
    }
    assert [where[shown.tobytes()] for shown in first.views] == first.labels.tolist()


# Bugs caught: options that do not reach the export, JSON among other lines, a size that changes the share that is cut.
def test_on_the_command_line(tmp_path, capsys):
    folders = make_class_folders(tmp_path / "images")
    output = tmp_path / "new" / "exported"
    arguments = ["export", str(tiny_run()), "-o", str(output), "--json", "--size", "40", "--input", "float32"]
    arguments += ["--calibration", str(folders), "--kind", "class_folders", "--reference-images", "12"]
    assert run_and_report(swav_tf, [*arguments, "--outputs", "scores,features"]) == 0
    told = json.loads(capsys.readouterr().out)["files"]["model-fp32.onnx"]
    assert told["passed"]
    assert (told["images"], told["real_images"], set(told["relative_error"])) == (
        12 + 16,
        12,
        {"features", "scores"},
    )
    runner = open_runner(output / "model-fp32.onnx")
    assert runner.outputs == ["scores", "features"]
    assert (runner.view.resize, runner.view.crop) == (40, 40)
    assert runner.prepared(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, 3, 40, 40)


# Bugs caught: a misspelt name that is passed over, int8 without any image of the user's.
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"outputs": ("features", "logits")},
            UsageError,
            "--outputs of this model must be of features, proj",
        ),
        ({"outputs": ("scores",)}, UsageError, "features among them"),
        ({"precisions": ("fp8",)}, UsageError, "--precision must be of fp32, fp16, int8. Received: fp8"),
        ({"step": 7}, UsageError, r"checkpoints of steps \[11\]. Received: step 7"),
        ({"precisions": ("int8",), "data": "EMPTY", "kind": "images"}, DataError, "--calibration"),
    ],
)
def test_refusals_leave_nothing(tmp_path, settings, error, message):
    (tmp_path / "empty").mkdir()
    if "data" in settings:
        settings = {**settings, "data": str(tmp_path / "empty")}
    with pytest.raises(error, match=message):
        export_run(tiny_run(), tmp_path / "out", ExportSettings(**settings), tell=silent)
    assert not (tmp_path / "out").exists()


# Bug caught: half a file under its name, or a new file beside old ones, after the disk was full.
@pytest.mark.parametrize("limit", [1_000, 400_000])
def test_a_full_disk_leaves_what_was_there(exported, limit):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = ExportSettings(reference_images=40)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(ExportError, match="could not be written"):
            export_run(tiny_run(), exported, settings, tell=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


# Bug caught: a file that does not compute what Keras computes and is written all the same.
def test_a_graph_that_is_wrong_is_not_written(tmp_path, monkeypatch):
    import export.onnx_graph

    build = export.onnx_graph.build_graph

    def wrong(*args, **kwargs):
        model = build(*args, **kwargs)
        name = next(node for node in model.graph.node if node.op_type == "Conv").input[2]
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(0.01), name)
        )
        return model

    monkeypatch.setattr(export.onnx_graph, "build_graph", wrong)
    with pytest.raises(ExportError, match="fp32 does not compute what Keras computes: relative error"):
        export_run(tiny_run(), tmp_path / "out", ExportSettings(reference_images=10), tell=silent)
    assert not (tmp_path / "out").exists()
