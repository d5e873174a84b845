"""Exports from end to end: files, metadata, and that a failure leaves nothing behind."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image
from ruamel.yaml import YAML

import export.onnx_file
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.backends import open_model
from evaluate.backends.checksums import check_unchanged, read_checksums
from evaluate.backends.onnx_metadata import KEY, dataset_name, public_data
from evaluate.features import extract_features
from evaluate.images import open_images
from export.graph import load_trained
from export.reference import draw, draw_images, read_reference
from export.run import export_run
from export.settings import ExportSettings
from export.staging import ExportError
from export.verify import verify
from swav_tf.data.views import stack_views, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.recipe.data import Data, EvaluationView
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.classifier import load_classifier
from swav_tf.training.classify import finetune
from tests.classifiers import pretraining_run, tiny_classifier_recipe
from tests.evaluate.models import make_class_folders
from tests.tiny_run import tiny_run


# Bugs caught: a preprocessing that differs from training's, metadata of another checkpoint, a file called int8 or fp16
# that is as large as fp32.
def test_files_and_their_runner(everything):
    assert {path.name for path in everything.iterdir()} == {
        "model-fp16.onnx", "model-fp32.onnx", "model-int8-cpu.onnx", "parity.json", "reference.npz", "README.md",
    }  # fmt: skip
    sizes = {path.stem: path.stat().st_size for path in everything.glob("*.onnx")}
    assert sizes["model-fp16"] < 0.6 * sizes["model-fp32"]
    assert sizes["model-int8-cpu"] < 0.4 * sizes["model-fp32"]

    keras, onnx_file = open_model(tiny_run()), open_model(everything / "model-fp32.onnx", threads=1)
    images = open_images("digits", like=keras.data, split="test")
    views = stack_views(list(view_images(images.source, range(5), onnx_file.input_view)))
    for fact in ("input_view", "data", "feature_dim"):
        assert getattr(onnx_file, fact) == getattr(keras, fact)
    wanted, found = keras.run(views), onnx_file.run(views)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max())
    different = {"path": "", "runner": "", "file_sha256": None}
    assert onnx_file.facts.as_dict() | different == keras.facts.as_dict() | different
    assert onnx_file.facts.runner == "onnxruntime cpu fp32"


# Bugs caught: metadata that a server cannot read without us, calibration that is not recorded, calibrating on the very
# images that are compared.
def test_metadata(everything):
    model = onnx.load(everything / "model-int8-cpu.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    how = json.loads(found["preprocessing"])
    assert (how["resize"], how["crop"], how["inside"], how["layout"]) == (32, 32, True, "NHWC")
    assert how["interpolation"] == "bilinear, antialiased"
    assert (how["mean"], how["std"]) == ([0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
    assert (found["recipe"], found["step"], found["precision"]) == ("tiny", "11", "int8")
    every = json.loads(found[KEY])
    assert {"onnx", "tf2onnx", "onnxruntime", "tensorflow"} <= every["versions"].keys()
    calibration, compared = every["quantisation"], read_reference(everything / "reference.npz").facts["real"]
    assert (calibration["images"], calibration["seed"], calibration["calibration"]) == (48, 0, "minmax")
    assert calibration["names_sha256"] != compared["names_sha256"]


# Bugs caught: a card whose header is no YAML, figures of another file, a person's own card that is replaced.
def test_the_model_card(everything, tmp_path):
    _, header, text = (everything / "README.md").read_text().split("---\n", 2)
    facts = YAML(typ="safe").load(header)
    assert (facts["library_name"], facts["pipeline_tag"]) == ("onnx", "image-feature-extraction")
    assert {"license", "tags"} <= facts.keys()
    parity = json.loads((everything / "parity.json").read_text())["files"]
    for name, figures in parity.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert f"{figures['cosine_median']:.6f}" in row
        assert f"({figures['knn_reference']:.1%})" in row
    assert "uint8 (n, 32, 32, 3)" in text
    settings = ExportSettings(precisions=("fp32",), reference_images=8)
    for before, kept in (("my card", True), ((everything / "README.md").read_text(), False)):
        (tmp_path / "README.md").write_text(before)
        export_run(tiny_run(), tmp_path, settings)
        assert ((tmp_path / "README.md").read_text() == before) == kept


# Bugs caught: two draws that share images, another draw for the same seed, labels of other images; calibration in the
# message about a draw without any.
def test_draws():
    images = open_images("digits", like=Data(kind="digits"))
    view = open_model(tiny_run()).input_view
    draws = [draw_images(images, (30, 20), view, seed=4, max_bad_share=0) for _ in range(2)]
    first, second = draws[0]
    assert (len(first.images), len(second.images)) == (30, 20)
    assert not {view.tobytes() for view in first.images} & {view.tobytes() for view in second.images}
    names = [draw.facts["names_sha256"] for draw in (first, draws[1][0], second)]
    assert names[0] == names[1] != names[2]
    shown = view_images(images.source, range(len(images.source)), view)
    labels = {image.view.tobytes(): image.label for image in shown}
    assert [labels[image.tobytes()] for image in first.images] == first.labels.tolist()
    with pytest.raises(DataError, match=r"2 readable images to compare\. Received: 1 in digits"):
        draw_images(images, (1, 0), view, seed=4, max_bad_share=0)


# Bugs caught: options that do not reach the export, JSON among other lines, a size that changes the share that is cut.
def test_on_the_command_line(tmp_path, capsys):
    folders = make_class_folders(tmp_path / "images")
    output = tmp_path / "new" / "exported"
    words = "--json --size 40 --input float32 --outputs scores,features --reference-images 12 --kind class_folders"
    arguments = [
        "export",
        str(tiny_run()),
        "--output",
        str(output),
        "--calibration",
        str(folders),
        *words.split(),
    ]
    assert run_and_report(swav_tf, arguments) == 0
    found = json.loads(capsys.readouterr().out)["files"]["model-fp32.onnx"]
    assert found["passed"]
    assert (found["images"], found["real_images"]) == (12 + 16, 12)
    assert set(found["relative_error"]) == {"features", "scores"}
    runner = open_model(output / "model-fp32.onnx")
    assert runner.outputs == ("scores", "features")
    assert (runner.input_view.resize, runner.input_view.crop) == (40, 40)
    assert runner.metadata.preprocessing.apply(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, 3, 40, 40)


# Bugs caught: a misspelt name that is passed over, int8 without any image of the user's.
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"outputs": ("features", "logits")},
            UsageError,
            "--outputs of this model must be among features, pro",
        ),
        ({"outputs": ("scores",)}, UsageError, "including features"),
        ({"precisions": ("fp8",)}, UsageError, "--precision must be among fp32, fp16, int8. Received: fp8"),
        ({"step": 7}, UsageError, r"checkpoints of steps \[11\]. Received: step 7"),
        ({"precisions": ("int8",), "data": "EMPTY", "kind": "images"}, DataError, "--calibration"),
    ],
)
def test_refusals_leave_nothing(tmp_path, settings, error, message):
    (tmp_path / "empty").mkdir()
    if "data" in settings:
        settings = {**settings, "data": str(tmp_path / "empty")}
    with pytest.raises(error, match=message):
        export_run(tiny_run(), tmp_path / "out", ExportSettings(**settings))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A fine-tuned run's folder: backbone and classifier that no seed alone gives."""
    folder = tmp_path_factory.mktemp("runs")
    pretraining_run(folder / "first")
    recipe = tiny_classifier_recipe(FinetuneRecipe, train__epochs=1)
    finetune(recipe, model=folder / "first", run_dir=folder / "tuned", quiet=True)
    return folder / "tuned"


# Bugs caught: logits of another classifier or without its bias, features of the backbone before fine-tuning, class
# names that are lost, predictions that need TensorFlow or that differ from Keras'.
@pytest.mark.multiprocess
def test_a_classifier(probed, tmp_path, capsys):
    export = ["export", str(probed), "--output", str(tmp_path / "out"), "--precision", "fp32,fp16"]
    assert run_and_report(swav_tf, [*export, "--reference-images", "40", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = printed["files"]["model-fp32.onnx"]
    assert set(found["relative_error"]) == {"features", "logits"}
    assert found["class_agreement"] == 1
    path = tmp_path / "out" / "model-fp32.onnx"
    runner = open_model(path)
    assert runner.outputs == ("features", "logits")
    assert runner.metadata.class_names == tuple(str(digit) for digit in range(10))
    assert runner.metadata.epoch == printed["epoch"] == "last epoch (1)"
    classifier, recipe, _ = load_classifier(probed)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    wanted = classifier(images, training=False).numpy()
    np.testing.assert_allclose(runner.run(images)["logits"], wanted, rtol=1e-4, atol=1e-5)
    assert runner.input_view == recipe.data.evaluation

    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    words = ["predict", str(path), str(folder), "--quiet", "--output", str(tmp_path / "predictions.json")]
    code = "import sys\nsys.modules['tensorflow'] = None\nfrom cli.main import main\nmain()"
    subprocess.run([sys.executable, "-c", code, *words], check=True)
    for one, logits in zip(json.loads((tmp_path / "predictions.json").read_text()), wanted, strict=True):
        assert [place["class"] for place in one["top"]] == [str(i) for i in np.argsort(-logits)[:5]]
        exact = np.exp(logits.astype(np.float64))
        assert one["top"][0]["probability"] == pytest.approx((exact / exact.sum()).max(), rel=1e-4)


# Bug caught: classes guessed from an output that is none.
def test_predictions_need_logits(everything, tmp_path, capsys):
    make_class_folders(tmp_path / "photos")
    words = ["predict", str(everything / "model-fp32.onnx"), str(tmp_path / "photos")]
    assert run_and_report(swav_tf, [*words, "--output", str(tmp_path / "predictions.json")]) == 2
    assert "needs a file with an output `logits`" in " ".join(capsys.readouterr().err.split())


# Bugs caught: a protobuf of more than 2 GiB, weights that no reader finds, a data file of another export next to it,
# half precision that keeps two files although it needs one, int8 that fails inside of ONNX after minutes.
def test_weights_in_a_second_file(tmp_path, monkeypatch):
    limit = 1_000_000  # float32 needs 1.3 MB, float16 0.7
    monkeypatch.setattr(export.onnx_file, "ONE_FILE_BYTES", limit)
    settings = ExportSettings(precisions=("fp32", "fp16"), reference_images=10)
    with pytest.raises(UsageError, match="int8 is made from a float32 graph of"):
        export_run(tiny_run(), tmp_path / "out", replace(settings, precisions=("int8",)))
    files = export_run(tiny_run(), tmp_path / "out", settings)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model-fp32.onnx", "model-fp32.onnx.data", "model-fp16.onnx"} <= names
    assert "model-fp16.onnx.data" not in names
    path, weights = tmp_path / "out" / "model-fp32.onnx", tmp_path / "out" / "model-fp32.onnx.data"
    assert files[0].bytes == path.stat().st_size + weights.stat().st_size
    assert path.stat().st_size < 100_000 < limit < weights.stat().st_size
    onnx.checker.check_model(path, full_check=True)
    assert run_and_report(swav_tf, ["verify", str(tmp_path / "out")]) == 0

    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # of the last weight's exponent: hardly to be seen in the figures, if at all
    weights.write_bytes(data)
    results, _ = verify([path])
    assert "model-fp32.onnx.data must have the SHA-256" in results[path.name][1].failures[0]
    with pytest.raises(DataError, match="and was not run"):
        open_model(path)
    weights.unlink()
    with pytest.raises(DataError, match=r"cannot run in onnxruntime.*model-fp32.onnx.data"):
        open_model(path)

    weights.write_bytes(b"of a larger model")
    monkeypatch.undo()
    export_run(tiny_run(), tmp_path / "out", ExportSettings(reference_images=10))
    assert not weights.exists()
    # What was recorded of files that this export left alone is still there.
    recorded = read_checksums(tmp_path / "out")
    assert recorded == {name: check_unchanged(tmp_path / "out" / name) for name in recorded}
    assert recorded.keys() == {"model-fp32.onnx", "model-fp16.onnx"}


# Bug caught: an interrupted `features` that resumes with a file of another calibration, whose weights are the same.
def test_features_tell_calibrations_apart(everything, tmp_path):
    images = open_images("digits", like=Data(kind="digits"), split="test")
    output = tmp_path / "features.npz"
    extract_features(open_model(everything / "model-int8-cpu.onnx"), images, output)
    settings = ExportSettings(precisions=("int8",), reference_images=40, calibration_images=20, seed=3)
    export_run(tiny_run(), tmp_path / "out", settings)
    again = open_model(everything / "model-int8-cpu.onnx")
    assert extract_features(again, images, output).images_before == 360
    other = open_model(tmp_path / "out" / "model-int8-cpu.onnx")
    with pytest.raises(UsageError, match=r"model\.file_sha256: was"):
        extract_features(other, images, output)


# Bugs caught: a pretraining run whose steps are called epochs; an intact step that a damaged newer one hides.
def test_a_step_of_a_pretraining_run(tmp_path):
    run = shutil.copytree(tiny_run(), tmp_path / "run")
    store = CheckpointStore(run / "checkpoints", kind="pretrain")
    old = store.read(11)
    position = old.facts["position"] | {"validation": {"knn_top1": 0.5}}
    newest = store.write(12, old.arrays, {"recipe": old.facts["recipe"], "position": position})
    assert load_trained(run, step=12).epoch == ""
    (newest / "state.json").write_text("{")
    assert load_trained(run, step=11).step == 11


# Bug caught: a private path, published with the model.
def test_no_path_travels(tmp_path):
    folders = make_class_folders(tmp_path / "secret" / "animals")
    settings = ExportSettings(
        ("int8",), data=str(folders), kind="class_folders", reference_images=8, calibration_images=8
    )
    export_run(tiny_run(), tmp_path / "out", settings)
    for path in (tmp_path / "out").iterdir():
        assert b"secret" not in path.read_bytes()
    assert "animals" in (tmp_path / "out" / "parity.json").read_text()
    (table := tmp_path / "secret" / "list.csv").write_text("path,label\ncat/00.png,cat\n")
    labeled = Data(kind="images", path=str(folders), labels=str(table))
    compared, _ = draw(labeled, ExportSettings(reference_images=8), EvaluationView(resize=32, crop=32))
    assert "secret" not in json.dumps(compared.facts) + public_data(labeled).model_dump_json()
    data = Data(kind="tfrecord", path="/home/me/*.tfrecord", validation_path="/home/me/v", image_key="x")
    assert public_data(data) == Data(kind="tfrecord", image_key="x")
    assert dataset_name(Data(kind="class_folders", path="/data/imagenet/")) == "imagenet"
    cifar = Data(kind="tfds", path="cifar10:3.0.2")
    assert dataset_name(cifar) == public_data(cifar).path == "cifar10:3.0.2"


# Bug caught: half a file under its name, or a new file among old ones, after the disk was full.
def test_a_full_disk_leaves_what_was_there(exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = ExportSettings(reference_images=40)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(ExportError, match="could not be written"):
            export_run(tiny_run(), exported, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


# Bug caught: a file that does not reproduce Keras' outputs and is written all the same.
def test_a_graph_that_is_wrong_is_not_written(tmp_path, monkeypatch):
    import export.graph

    build = export.graph.build_graph

    def wrong(*args, **kwargs):
        model = build(*args, **kwargs)
        name = next(node for node in model.graph.node if node.op_type == "Conv").input[2]
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        return model

    monkeypatch.setattr(export.graph, "build_graph", wrong)
    with pytest.raises(ExportError, match="fp32 does not reproduce Keras' outputs: relative error"):
        export_run(tiny_run(), tmp_path / "out", ExportSettings(reference_images=10))
    assert not (tmp_path / "out").exists()
