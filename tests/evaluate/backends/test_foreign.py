"""Third-party ONNX files: the same network as an exported one, with inputs and outputs as other tools make them."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate import open_model
from evaluate.backends.foreign import Contract, weight_files
from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.benchmark.plan import find_models
from evaluate.knn import check_same_model
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.exported import MEAN, SIDE, STD, write_foreign, write_onnx

CONTRACT = Contract(SIDE, SIDE, MEAN, STD)
OPTIONS = ["--view", "8,8", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]


@pytest.fixture
def images():
    return np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def wanted(tmp_path, images):
    """Features by the exported file."""
    write_onnx(tmp_path / "model-fp32.onnx", "fp32", weights="a" * 64)
    return open_model(tmp_path / "model-fp32.onnx").features(images)


# Bugs caught: another layout or normalization; a last batch that is lost or padded; weights in a second file.
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch": 1},
        {"batch": 2},
        {"batch": 7},
        {"layout": "NHWC"},
        {"external": True},
        {"outputs": ("flat",)},
    ],
    ids=str,
)
def test_features_of_the_same_network(settings, tmp_path, images, wanted):
    model = open_model(write_foreign(tmp_path / "other.onnx", **settings), contract=CONTRACT)
    np.testing.assert_allclose(model.features(images), wanted, rtol=1e-4, atol=1e-5)
    assert (model.feature_dim, model.outputs, model.metadata.precision) == (6, ("features",), "fp32")


def test_one_of_several_outputs(tmp_path, images, wanted):
    path = write_foreign(tmp_path / "other.onnx", outputs=("map", "pooled"))
    with pytest.raises(UsageError, match="no name; it has map, pooled"):
        open_model(path, contract=CONTRACT)
    with pytest.raises(UsageError, match=r"one vector per image. Received: map .*, of shape"):
        open_model(path, contract=Contract(SIDE, SIDE, MEAN, STD, "map"))
    found = open_model(path, contract=Contract(SIDE, SIDE, MEAN, STD, "pooled"))
    np.testing.assert_allclose(found.features(images), wanted, rtol=1e-4, atol=1e-5)


# Bug caught: an error for other outputs than features, where zeros filled the last batch.
def test_other_outputs_of_part_of_a_batch(tmp_path, images):
    path = write_foreign(tmp_path / "other.onnx", batch=4, outputs=("map", "flat"))
    found = OnnxBackend(path, only_timing=True).run(images)  # 4 and 1
    assert (found["map"].shape, found["flat"].shape) == ((5, 6, 4, 4), (5, 6))


@pytest.mark.parametrize(
    ("contract", "part"),
    [
        (None, "must be from `swav-tf export`.*--view, --mean and --std"),
        (Contract(SIDE, SIDE), "takes floats and needs --mean and --std. The usual ones are --view 256,224"),
        (Contract(9, 7, MEAN, STD), "as CROP, 8 x 8. Received: 7"),
    ],
)
def test_contracts_that_do_not_fit(contract, part, tmp_path):
    with pytest.raises((UsageError, DataError), match=part):
        open_model(write_foreign(tmp_path / "other.onnx"), contract=contract)


def test_an_exported_file_specifies_its_own(tmp_path, wanted):
    with pytest.raises(UsageError, match="are for third-party files"):
        open_model(tmp_path / "model-fp32.onnx", contract=CONTRACT)


# Bug caught: features of other weights, in a second file of the same graph, or of another mean, that are compared.
def test_identity(tmp_path):
    path = write_foreign(tmp_path / "other.onnx", external=True)
    assert [file.name for file in weight_files(path)] == ["other.onnx", "other.onnx.data"]

    def facts(contract=CONTRACT):
        model = open_model(path, contract=contract)
        return {"model": model.facts.as_dict(), "view": model.input_view.model_dump()}

    before, graph = facts(), path.read_bytes()
    check_same_model(before, facts(), "a", "b")
    with pytest.raises(UsageError, match="the same preprocessing"):
        check_same_model(before, facts(Contract(SIDE, SIDE, MEAN, (1, 1, 1))), "a", "b")
    (tmp_path / "other.onnx.data").unlink()  # onnx would append to it
    write_foreign(path, external=True, scale=2)
    assert path.read_bytes() == graph
    with pytest.raises(UsageError, match="another model"):
        check_same_model(before, facts(), "a", "b")


# Bug caught: files called model.onnx, as all of Hugging Face, that cannot be measured together.
def test_files_of_one_name_are_two_models(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [write_foreign(tmp_path / name / "model.onnx") for name in "ab"]
    assert [model.name for model in find_models(paths)] == ["a/model", "b/model"]


def test_precisions_and_other_inputs(tmp_path):
    path = write_foreign(tmp_path / "other.onnx", batch=4)
    [model] = find_models([path])
    assert (model.name, model.precision, model.batches, model.side) == ("other", "fp32", (4, 4), SIDE)
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    graph.graph.input[0].type.tensor_type.elem_type = graph.graph.output[0].type.tensor_type.elem_type = 10
    onnx.save(graph, path)
    assert open_model(path, contract=CONTRACT).metadata.precision == "fp16"
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    graph.graph.node.insert(0, onnx.helper.make_node("Identity", ["pixel_values"], ["x"]))
    graph.graph.node[1].input[0] = "x"
    kernel = np.ones((6, 4, 3, 3), np.float16)
    graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "kernel"))
    onnx.save(graph, path)
    with pytest.raises(DataError, match=r"must take one batch of RGB images.*pixel_values"):
        open_model(path, contract=CONTRACT)


# Bugs caught: a command that refuses the options, or compares something else than the two files.
def test_commands(tmp_path, wanted, capsys):
    draw = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    own, other = tmp_path / "model-fp32.onnx", write_foreign(tmp_path / "other.onnx")
    photos, features = tmp_path / "photos", tmp_path / "f.npz"
    of_photos = [
        "features",
        str(photos),
        "--model",
        str(other),
        "--output",
        str(features),
        "--json",
        *OPTIONS,
    ]
    assert run_and_report(swav_tf, of_photos) == 0
    assert "--mean 0.5,0.4,0.3" in json.loads(capsys.readouterr().out)["model"]["contract"]
    against = ["--against", str(other), "--images", str(photos), "--json", *OPTIONS]
    assert run_and_report(swav_tf, ["verify", str(own), *against]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["images"], found["knn_images"], found["neighbour_overlap"]) == (
        True,
        24,
        24,
        1,
    )
    assert not (tmp_path / "parity.json").exists()
    write_foreign(other, scale=-1)
    assert run_and_report(swav_tf, ["verify", str(own), *against]) == 1
    assert json.loads(capsys.readouterr().out)["centered_cosine_median"] < 0.9
    options = "--runner ort-cpu --batch 2 --seconds 0.05 --runs 3 --json - --quiet"
    line = ["benchmark", str(own), str(other), *options.split()]
    assert run_and_report(swav_tf, line) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["model"], cell["status"]) for cell in cells] == [(tmp_path.name, "ok"), ("other", "ok")]


# Bug caught: rounded numbers in the command that computes missing parts, which then differ from the others.
def test_a_contract_in_words_is_exact():
    mean, std = (0.48145466, 0.4578275, 0.40821073), (1.0, 0.26130258, 1e-05)
    assert str(Contract(9, 8, mean, std, "a b")) == (
        "--view 9,8 --mean 0.48145466,0.4578275,0.40821073 --std 1,0.26130258,1e-05 --output-name 'a b'"
    )
