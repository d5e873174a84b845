"""`predict` and `validate`, with the classifier of a short `probe`."""

import csv
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from cli import prediction
from swav_tf.data.decode import evaluation_view
from swav_tf.plumbing.errors import DataError
from swav_tf.training.classifier import load_classifier
from swav_tf.weights.convert import import_weights
from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.torch_files import write_torch_file
from tests.cli.command_line import write_noise
from tests.evaluate.exported import write_onnx


@pytest.fixture
def images(tmp_path):
    """Write three images and a file that is not an image."""
    folder = write_noise(tmp_path / "images", ["a.png", "below/b.png", "c.png"])
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def write_classes(folder, names):
    """Write one image of each class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 20, 3), 20 * number, np.uint8)).save(folder / name / "a.png")
    return folder


# Bugs caught: predictions under the wrong name after an unreadable file, logits instead of probabilities, an
# unreadable file that stops the others or goes unmentioned, class names in another order.
@pytest.mark.parametrize("batch", [2, 128])
def test_predict(batch, probe, images, tmp_path, run, output):
    line = f"predict {probe} {images} --quiet --batch {batch} --output {tmp_path}"
    result = run(f"{line}/out.json")
    assert result.code == 1
    assert "3 images, 1 unreadable" in result.out
    found = {item["file"]: item for item in json.loads((tmp_path / "out.json").read_text())}
    assert list(found) == ["a.png", "broken.jpg", "c.png", "below/b.png"]
    assert "not one of the formats" in found["broken.jpg"]["error"]

    model, recipe, facts = load_classifier(probe)
    for name in ("a.png", "below/b.png", "c.png"):
        view = evaluation_view(np.array(Image.open(images / name)), recipe.data.evaluation)
        logits = model(view[None], training=False).numpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)[:5]
        assert [place["class"] for place in found[name]["top"]] == [facts.class_names[i] for i in order]
        listed = [place["probability"] for place in found[name]["top"]]
        np.testing.assert_allclose(listed, probabilities[order], rtol=1e-4)

    (images / "broken.jpg").unlink()
    assert json.loads(output(f"{line}/new/out.csv --json"))["images"] == 3
    with (tmp_path / "new" / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "c.png", "below/b.png"]
    assert [row["class_1"] for row in rows] == [found[row["file"]]["top"][0]["class"] for row in rows]
    assert all(row["error"] == "" for row in rows)


# Bug caught: half a file of predictions, or a traceback, when the disk is full.
def test_predictions_on_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("x.csv", "x.json"):
        with pytest.raises(DataError, match=r"could not be written.*No space left.*another location"):
            prediction.write_predictions(
                tmp_path / "new" / name, [prediction.Prediction("a.png", ("cat",), (1.0,))]
            )
    assert list((tmp_path / "new").iterdir()) == []


# Bug caught: the predictions of millions of images, all in memory.
@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_predictions_are_written_while_they_are_computed(name, tmp_path):
    written = []

    def predictions():
        for number in range(1000):
            yield prediction.Prediction(f"{number}.png", ("cat",), (1.0,))
        written.extend(path.stat().st_size for path in tmp_path.iterdir())

    prediction.write_predictions(tmp_path / name, predictions())
    assert written[0] > 10_000


# Bugs caught: another view, other images or other weights than those of the run's own validation.
def test_validate_repeats_the_runs_figures(probe, tmp_path, output):
    found = json.loads(output(f"validate {probe} --json --batch 100 --output {tmp_path}/results"))
    last = json.loads((probe / "summary.json").read_text())["last"]
    assert (found["images"], found["top1"], found["top5"]) == (360, last["top1"], last["top5"])
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert (tmp_path / "results" / "per_class.csv").read_text() == (probe / "per_class.csv").read_text()
    best = json.loads((probe / "summary.json").read_text())["best"]
    assert output(f"validate {probe} --best").startswith(f"best epoch ({best['epoch']}): 360 images")


# Bugs caught: a traceback; labels by folder number where the classes differ; an unreadable image that changes the
# figure; a measurement before the output is checked.
@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("predict m . --output x.txt", 2, "--output must end in .csv or .json"),
        ("predict {empty} {images} --output x.csv", 2, "without config.yaml"),
        ("predict {model} {images} --output x.csv", 2, "a pretraining run"),
        ("predict {probe} gone --output x.csv", 1, "gone. Check the path"),
        ("predict {probe} list.csv --output ./list.csv", 2, "another file than DATA"),
        ("validate {empty}", 2, "without config.yaml"),
        ("predict {probe}/x.onnx {images} --output x.csv --best", 2, "--best is for run folders"),
        ("weights export {model} --output x.pth --best", 2, "has no validated epoch"),
        ("validate {probe} --output {probe}/config.yaml", 2, "--output must be a folder"),
        ("validate {probe} {pets} --kind class_folders", 1, "2 only among the validation images: cat, dog"),
        ("validate {probe} {digits} --kind class_folders", 1, "0/b.png cannot be read"),
    ],
)
def test_refusals(line, code, part, model, probe, images, tmp_path, monkeypatch, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text(f"path\n{images}/a.png\n")
    pets = write_classes(tmp_path / "pets", ["cat", "dog"])
    digits = write_classes(tmp_path / "digits", list("0123456789"))
    (digits / "0" / "b.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    line = line.format(empty="empty", images=images, model=model, probe=probe, pets=pets, digits=digits)
    refused(line, code, part)
    assert not (tmp_path / "x.csv").exists()


# Bug caught: 'tensorflow is not installed' for a typo, or for the folder of exported files.
def test_predict_needs_tensorflow_for_run_folders_only(images, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    refused(f"predict {tmp_path}/typo {images} --output {tmp_path}/x.csv", 2, "typo, which does not exist")
    write_onnx(tmp_path / "model-fp32.onnx", "fp32", weights="a" * 64)
    refused(f"predict {tmp_path} {images} --output {tmp_path}/x.csv", 2, "model-fp32.onnx with features")


def import_classifier(folder, weight, bias, **options):
    """Import a linear classifier on a random backbone as the run `folder`/run."""
    draw = np.random.default_rng(0)
    shapes = {slot.torch: slot.shape for slot in slots(Sizes("resnet_small"))}
    state = {name: draw.uniform(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    write_torch_file(state, folder / "backbone.pth")
    write_torch_file({"linear.weight": weight, "linear.bias": bias}, folder / "linear.pth")
    import_weights(folder / "linear.pth", folder / "run", backbone=folder / "backbone.pth", **options)


# Bug caught: transparent images on another background than in training.
def test_images_are_decoded_as_in_training(tmp_path, run):
    weight = np.random.default_rng(1).normal(0, 1e-7, (3, 128)).astype(np.float32)
    import_classifier(tmp_path, weight, np.zeros(3, np.float32), overrides=["data.background=[0, 0, 0]"])
    images = write_noise(tmp_path / "images", ["noise.png"])
    Image.new("RGBA", (24, 20), (9, 9, 9, 0)).save(images / "clear.png")
    for name, color in (("black", 0), ("white", 255)):
        Image.new("RGB", (24, 20), (color,) * 3).save(images / f"{name}.png")
    assert run(f"predict {tmp_path}/run {images} --output {tmp_path}/x.json").code == 0
    found = {item["file"]: item["top"] for item in json.loads((tmp_path / "x.json").read_text())}
    assert found["clear.png"] == found["black.png"] != found["white.png"]


# Bug caught: an imported classifier without names that cannot be measured on folders with names.
def test_an_import_without_class_names_takes_those_of_the_images(tmp_path, output):
    import_classifier(tmp_path, np.zeros((3, 128), np.float32), np.array([0, 9, 0], np.float32))
    folder = write_classes(tmp_path / "val", ["ant", "bee", "cow"])
    output(f"validate {tmp_path}/run {folder} --output {tmp_path}/results")
    rows = list(csv.reader((tmp_path / "results" / "per_class.csv").read_text().splitlines()))
    assert rows[1:] == [["ant", "1", "0.0", "1.0"], ["bee", "1", "1.0", "1.0"], ["cow", "1", "0.0", "1.0"]]
