"""`verify`, damaged files, and everything that runs from an exported file without TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate import open_model
from evaluate.backends.checksums import check_unchanged, read_checksums
from export.reference import read_reference
from swav_tf.data.decode import decode, evaluation_view, read_pixels
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.exported import write_onnx
from tests.export.edits import edit, edit_facts, flip_a_weight

ROOT = Path(__file__).parents[2]
NAMES = ("model-fp16.onnx", "model-fp32.onnx", "model-int8-cpu.onnx")
BLOCKED = """
import sys
for name in ("tensorflow", "keras", "keras_cv", "tensorflow_datasets", "tf2onnx", "onnx"):
    sys.modules[name] = None  # every import of it fails
"""
COMMANDS = """
from cli.errors import run_and_report
from cli.main import swav_tf
folder, out = sys.argv[1:]
features = ["features", "digits", "--model", folder + "/model-int8-cpu.onnx", "--quiet"]
codes = [
    run_and_report(swav_tf, [*features, "--split", split, "--output", f"{out}/{split}.npz"])
    for split in ("train", "test")
]
codes.append(run_and_report(swav_tf, ["knn", out + "/train.npz", out + "/test.npz", "-k", "20", "--json", "--quiet"]))
codes.append(run_and_report(swav_tf, ["verify", folder]))
print(codes)
"""


# Bug caught: a command that needs TensorFlow, or the package onnx, after all.
@pytest.mark.multiprocess
def test_without_tensorflow(exported, tmp_path):
    code = [sys.executable, "-c", BLOCKED + COMMANDS, str(exported), str(tmp_path)]
    run = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[0, 0, 0, 0]", run.stdout + run.stderr
    assert "passed" in run.stdout
    features = np.load(tmp_path / "test.npz")["features"]
    assert features.shape == (360, 128)
    assert features.std(axis=0).max() > 0.01


# Bugs caught: a script in the docs that does not run without TensorFlow, or prepares images in another way.
@pytest.mark.multiprocess
def test_the_script_of_the_docs(everything, tmp_path):
    script = (ROOT / "docs" / "export.md").read_text().split("```python\n")[1].split("```")[0]
    paths = write_photos(tmp_path)
    arguments = [everything / "model-fp32.onnx", tmp_path / "features.npy", *paths]
    command = [sys.executable, "-c", BLOCKED + script, *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)  # the work is that of a second
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), features_by_hand(everything, paths))


# Bugs caught: the example's form of `features`; rows in another order; images of Pillow that are not turned or
# composited; a batch that is lost at the end; an unreadable file without its name.
def test_features_of_any_images(everything, tmp_path):
    paths = write_photos(tmp_path)
    blocks = (ROOT / "docs" / "evaluation.md").read_text().split("```python\n")[1:]
    [example] = [
        block.split("```")[0] for block in blocks if 'open_model("exported/' in block.split("```")[0]
    ]
    example = example.replace("exported/", f"{everything}/").replace("photos/1.jpg", str(paths[0]))
    names: dict = {}
    exec(example.replace("photos/2.png", str(paths[2])), names)
    wanted = features_by_hand(everything, paths)
    np.testing.assert_array_equal(names["features"], wanted[[0, 2]])

    model = open_model(everything / "model-fp32.onnx")
    pixels = read_pixels(paths[1])
    assert pixels.shape == (3000, 4000, 3)  # upright
    images = [paths[0].read_bytes(), pixels, Image.open(paths[2])]
    np.testing.assert_allclose(model.features(iter(images), batch_size=2), wanted, rtol=1e-4, atol=1e-5)
    near = model.features([Image.open(path) for path in paths])  # Pillow decodes JPEG a little differently
    assert np.linalg.norm(near - wanted) < 0.01 * np.linalg.norm(wanted)
    assert model.features([]).shape == (0, model.feature_dim)
    (tmp_path / "bad.jpg").write_bytes(paths[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"bad\.jpg cannot be read"):
        model.features([paths[0], tmp_path / "bad.jpg"])
    with pytest.raises(DataError, match="image 0 cannot be read: an array must be uint8"):
        model.features([pixels / 255])
    with pytest.raises(UsageError, match="must be a list"):
        model.features(str(paths[0]))


def write_photos(folder):
    draw = np.random.default_rng(0)
    paths = [folder / name for name in ("photo.jpg", "turned.jpg", "icon.png")]
    for path, size, turn in zip(paths, ((500, 375), (3000, 4000), (90, 70)), (1, 6, 1), strict=True):
        coarse = draw.integers(0, 256, (5, 7, 4 if path.suffix == ".png" else 3), dtype=np.uint8)
        image, exif = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), Image.Exif()
        exif[0x0112] = turn
        image.save(path, exif=exif)
    return paths


def features_by_hand(folder, paths):
    model = open_model(folder / "model-fp32.onnx")
    return model.run(
        np.stack([evaluation_view(decode(path.read_bytes()), model.input_view) for path in paths])
    )["features"]


# Bugs caught: figures that are not written, a verdict other than the exit code, k-NN of other images than requested.
def test_passes(exported, capsys):
    (exported / "parity.json").unlink()
    arguments = ["verify", str(exported), "--images", "digits", "--split", "test", "--json"]
    assert run_and_report(swav_tf, arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((exported / "parity.json").read_text())
    assert found["passed"]
    assert {file["precision"] for file in found["files"].values()} == {"fp32", "fp16", "int8"}
    assert all(file["knn_images"] == 360 for file in found["files"].values())
    assert found["files"]["model-int8-cpu.onnx"]["images"] == 80  # without random pixels
    fp32 = found["files"]["model-fp32.onnx"]
    assert (fp32["images"], fp32["runner"]) == (96, "onnxruntime cpu fp32")


def spoil_weights(model):
    for tensor in model.graph.initializer:
        if "conv2" in tensor.name and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[::2] *= np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def drop_scores(model):
    del model.graph.output[[output.name for output in model.graph.output].index("scores")]


def constant_features(model):
    [pool] = [node for node in model.graph.node if node.op_type == "GlobalAveragePool"]
    model.graph.initializer.append(onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0]))
    multiply = onnx.helper.make_node("Mul", ["before", "zero"], [pool.output[0]])
    pool.output[0] = "before"
    model.graph.node.insert(list(model.graph.node).index(pool) + 1, multiply)


def other_hash(model):
    edit_facts(model, weights_sha256="0" * 64)


def other_size(model):
    how = {entry.key: entry.value for entry in model.metadata_props}["preprocessing"]
    edit_facts(model, preprocessing={**json.loads(how), "crop": 24})


def impossible_groups(model):
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = 2**31  # ONNX Runtime opens it, and fails when it computes


# Bug caught: a file that is not the reference's model, and passes.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_weights, "relative error of `features` must be <= 1e-05"),
        (drop_scores, "output `scores` is missing"),
        (constant_features, "output `features` is the same for every image"),
        (impossible_groups, "kernel channels * group"),
        (other_hash, "its weights are 000000000000..., the reference's"),
        (other_size, "tensor(uint8) [24, 24, 3]"),
    ],
)
def test_failures(exported, change, message, capsys):
    edit(exported / "model-fp32.onnx", change)
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 1
    out = capsys.readouterr().out
    assert "model-fp32.onnx: " in out
    assert message in out
    assert "model-fp16.onnx: " not in out
    assert json.loads((exported / "parity.json").read_text())["passed"] is False


# Bug caught: one file of another size, or one that cannot be computed, that ends the command for all.
@pytest.mark.parametrize(
    ("name", "message"),
    [("model-fp16.onnx", "its images are"), ("model-fp16.onnx", "channels"), ("model-fp32.onnx", "channels")],
)
def test_one_odd_file_fails_alone_on_labeled_images(exported, capsys, name, message):
    edit(exported / name, impossible_groups)
    if message == "its images are":
        write_onnx(exported / name, "fp16", weights="0" * 64)
    arguments = ["verify", str(exported), "--images", "digits", "--limit", "60", "--json"]
    assert run_and_report(swav_tf, arguments) == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert message in files[name]["failures"][0]
    assert [file["passed"] for file in files.values()] == [other != name for other in NAMES]
    # Without a working fp32 file, the labeled images are those of the reference.
    of_others = {file["knn_images"] for file in files.values() if file["passed"]}
    assert of_others == {80 if name == "model-fp32.onnx" else 60}


def test_labeled_images_need_the_fp32_file(exported, capsys):
    assert run_and_report(swav_tf, ["verify", str(exported / "model-fp16.onnx"), "--images", "digits"]) == 2
    assert "must be among them. Received: model-fp16.onnx" in " ".join(capsys.readouterr().err.split())


# === Damage after the export ===


# Bugs caught: features of a network that nobody trained; damage whose checksum `verify` then records.
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit(exported, tmp_path, capsys, name):
    recorded = read_checksums(exported)
    assert recorded == {name: check_unchanged(exported / name) for name in NAMES}
    path = exported / name
    flip_a_weight(path)
    message = f"{name} must have the {recorded[name]} recorded in parity.json"
    for arguments in (
        ["features", "digits", "--split", "test", "--model", str(path), "--output", str(tmp_path / "f.npz")],
        ["benchmark", str(path), "--json", str(tmp_path / "figures.json")],
    ):
        assert run_and_report(swav_tf, arguments) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.npz")) + list(tmp_path.glob("*.json"))

    assert run_and_report(swav_tf, ["verify", str(exported), "--json"]) == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["passed"] for file in files.values()] == [other != name for other in NAMES]
    assert message in files[name]["failures"][0]
    assert read_checksums(exported) == recorded

    # Without the record it runs: the record is what finds the damage.
    (exported / "parity.json").unlink()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert np.isfinite(open_model(path).run(images)["features"]).all()


# Bugs caught: `verify` of one file that forgets the others, or keeps results of files that are gone; a file of an older export that stays without a record after
# it passed; one that failed and is recorded.
def test_verify_keeps_records_and_adds_those_of_files_that_pass(exported):
    recorded = read_checksums(exported)
    assert run_and_report(swav_tf, ["verify", str(exported / "model-fp32.onnx")]) == 0
    assert read_checksums(exported) == recorded
    assert json.loads((exported / "parity.json").read_text())["files"].keys() == {*NAMES}
    (exported / "model-int8-cpu.onnx").unlink()
    assert run_and_report(swav_tf, ["verify", str(exported / "model-fp32.onnx")]) == 0
    assert json.loads((exported / "parity.json").read_text())["files"].keys() == {*NAMES[:2]}

    (exported / "parity.json").unlink()
    (exported / "model-fp32.onnx").replace(exported / "model-fp16.onnx")  # passes under any name
    (exported / "model-int8-cpu.onnx").write_bytes(b"no graph")
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 1
    assert read_checksums(exported) == {"model-fp16.onnx": recorded["model-fp32.onnx"]}


# Bug caught: on a server that mounts its models read-only, minutes of work without a result.
@pytest.mark.parametrize("code", [0, 1])
def test_a_read_only_folder(exported, capsys, monkeypatch, code):
    def refuse(path):
        raise DataError(f"{path} could not be written: Read-only file system.")

    monkeypatch.setattr("export.verify.atomic_write", refuse)
    path = exported / "model-fp32.onnx"
    if code:
        edit(path, drop_scores)
    before = {file: file.read_bytes() for file in exported.iterdir()}
    assert run_and_report(swav_tf, ["verify", str(path), "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["files"][path.name]["passed"] == (not code)
    assert "not kept" in err
    assert "Read-only file system" in err
    assert {file: file.read_bytes() for file in exported.iterdir()} == before


def future_ir(model):
    model.ir_version = 99


def unknown_opset(model):
    model.opset_import[0].version = 99


# Bugs caught: a traceback for a damaged file, or a file that is skipped.
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an ONNX file at all"),
        lambda path: path.write_bytes(path.read_bytes()[:100_000]),
        lambda path: edit(path, future_ir),
        lambda path: edit(path, unknown_opset),
    ],
    ids=["empty", "text", "truncated", "IR 99", "opset 99"],
)
def test_damaged_files_without_a_record(exported, spoil, capsys):
    path = exported / "model-fp32.onnx"
    (exported / "parity.json").unlink()
    spoil(path)
    with pytest.raises(DataError, match=r"model-fp32.onnx cannot run in onnxruntime"):
        open_model(path)
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 1
    assert "model-fp32.onnx cannot run in" in " ".join(capsys.readouterr().out.split())


# Bugs caught: images prepared by guess, or of another size.
def test_what_cannot_run(exported):
    path = exported / "model-fp32.onnx"
    with pytest.raises(ValueError, match=r"uint8 \(n, 32, 32, 3\)"):
        open_model(path).run(np.zeros((1, 40, 40, 3), np.uint8))
    edit(path, lambda model: model.metadata_props.clear())
    with pytest.raises(DataError, match="`swav-tf export`"):
        open_model(path)


# Bugs caught: a verdict about nothing, and a reference of nothing.
def test_nothing_to_verify(exported, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_and_report(swav_tf, ["verify", str(tmp_path / "empty")]) == 2
    assert run_and_report(swav_tf, ["verify", str(tmp_path / "nowhere")]) == 2
    reference = exported / "reference.npz"
    reference.write_bytes(reference.read_bytes()[:5000])
    with pytest.raises(DataError, match="must be a reference written by"):
        read_reference(reference)
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 1
    reference.unlink()
    assert run_and_report(swav_tf, ["verify", str(exported)]) == 2
