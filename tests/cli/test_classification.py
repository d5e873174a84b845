"""What `probe`, `finetune` and `predict` hand over, and `predict` for real."""

import csv
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_recipe_of
from swav_tf.training.rendezvous import ClusterAddress
from tests.cli.command_line import Run, Told
from tests.cli.images import write_noise


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of trainers that train nothing."""
    made: list[dict[str, Any]] = []

    def job(name: str) -> Any:
        def run(recipe: Any, **arguments: Any) -> SimpleNamespace:
            made.append({"job": name, "recipe": recipe, **arguments})
            return SimpleNamespace(summary={"last": {"top1": 0.5}})

        return run

    for module, names in (("classify", ("probe", "finetune")), ("cached_probe", ("probe_cached",))):
        trainer = ModuleType(f"swav_tf.training.{module}")
        for name in names:
            setattr(trainer, name, job(name))
        monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    return made


# Bug caught: a default folder that is the pretraining run's own, or the same for two kinds of probe.
@pytest.mark.parametrize(
    ("words", "job", "run_dir"),
    [
        (["probe", "-c", "probe_digits"], "probe", "runs/demo/probe_digits"),
        (["probe", "-c", "probe_digits", "--cached"], "probe_cached", "runs/demo/probe_digits_cached"),
        (["probe", "-c", "probe_digits", "--from-scratch"], "probe", "runs/probe_digits_from_scratch"),
        (["finetune", "-c", "finetune_digits"], "finetune", "runs/demo/finetune_digits"),
        (["finetune", "-c", "finetune_digits", "--run-dir", "x"], "finetune", "x"),
    ],
)
def test_where_a_run_goes(
    calls: list[dict[str, Any]], words: list[str], job: str, run_dir: str, told: Told
) -> None:
    told(*words, "--model", "runs/demo")
    [call] = calls
    assert (call["job"], call["run_dir"], call["model"]) == (job, Path(run_dir), "runs/demo")
    assert call["from_scratch"] == ("--from-scratch" in words)


# Bugs caught: an option that is parsed and dropped, TRAIN and VALIDATION in the wrong order.
def test_every_option(calls: list[dict[str, Any]], tmp_path: Path, told: Told) -> None:
    (tmp_path / "list: 1.txt").write_text("a.JPEG\n")
    words = ["finetune", 'train/"ü"', "val", "-c", "finetune_1pct", "--model", "m", "-o", "train.epochs=17"]
    words += ["--subset", str(tmp_path / "list: 1.txt"), "--fresh", "--json", "--run-dir", "r"]
    words += ["--nodes", "2", "--node-rank", "0", "--master", "h:1"]
    assert json.loads(told(*words)) == {"last": {"top1": 0.5}}
    [call] = calls
    expected = load_recipe_of(FinetuneRecipe, "finetune_1pct", ["train.epochs=17"])
    data = expected.data.model_copy(update={"path": 'train/"ü"', "validation_path": "val"})
    subset = str(tmp_path / "list: 1.txt")
    assert call["recipe"] == expected.model_copy(update={"data": data, "subset": subset})
    assert call["cluster"] == ClusterAddress(nodes=2, node_rank=0, master="h:1")
    assert (call["fresh"], call["quiet"]) == (True, True)


# Bug caught: a TFDS split that is taken for a path and read by nobody.
def test_validation_is_a_split_of_a_tfds_data_set(calls: list[dict[str, Any]], told: Told) -> None:
    told("probe", "cifar10", "test", "-c", "probe", "--model", "m", "-o", "data.kind=tfds")
    data = calls[0]["recipe"].data
    assert (data.path, data.validation_split, data.validation_path) == ("cifar10", "test", None)
    assert isinstance(calls[0]["recipe"], ProbeRecipe)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["probe", "-c", "probe_digits"], ["Missing option '--model'"]),
        (["probe", "-c", "demo", "--model", "m"], ["a recipe of kind probe is needed here"]),
        (["finetune", "-c", "probe", "--model", "m"], ["a recipe of kind finetune is needed here"]),
        (["probe", "-c", "probe", "--model", "m"], ["where the training images are", "Give TRAIN and VALIDATION"]),
        (["probe", "t", "-c", "probe", "--model", "m"], ["where the validation images are"]),
        (["probe", "t", "v", "-c", "probe_digits", "--model", "m"], ["digits are bundled and take no VALIDATION"]),
        (["probe", "t", "-c", "probe_digits", "--model", "m"], ["data.path: the digits are bundled"]),
        (["finetune", "-c", "finetune_digits", "--model", "m", "--subset", "no.txt"], ["'no.txt' does not exist"]),
        (
            ["probe", "-c", "probe_digits", "--model", "m", "--cached", "--nodes", "1", "--node-rank", "0", "--master", "h:1"],
            ["--cached runs on one machine"],
        ),
        (["predict", "m", ".", "--output", "x.txt"], ["--output must end in .csv or .json"]),
    ],
)  # fmt: skip
def test_what_is_asked_for_wrongly_has_exit_code_2(
    calls: list[dict[str, Any]], words: list[str], parts: list[str], run: Run
) -> None:
    left = run(*words)
    assert (left.code, left.out) == (2, "")
    assert all(part in left.err for part in parts), left.err
    assert calls == []


# === predict ===


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe's folder, one step old."""
    from swav_tf.training.classify import probe
    from tests.classifiers import pretraining_run, tiny_classifier_recipe

    folder = tmp_path_factory.mktemp("probed")
    recipe = tiny_classifier_recipe(ProbeRecipe, train__epochs=1, train__batch_size=700)
    probe(recipe, model=pretraining_run(folder / "pretrained"), run_dir=folder / "probe", quiet=True)
    return folder / "probe"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images and one that is none."""
    folder = write_noise(tmp_path / "images", ("a.png", "below/b.png", "c.png"), height=20, width=24)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


# Bugs caught: predictions under the wrong name after an unreadable file, probabilities that are logits, an unreadable
# file that stops the others or goes unmentioned, classes that are numbers of another order.
@pytest.mark.parametrize("batch_size", ["2", "128"])
def test_predictions_are_the_models(
    probed: Path, images: Path, tmp_path: Path, batch_size: str, run: Run
) -> None:
    from swav_tf.training.classifier_folder import load_classifier

    words = ["predict", probed, images, "--quiet", "--batch", batch_size]
    left = run(*words, "--output", tmp_path / "out.json")
    assert left.code == 1
    assert "3 images, 1 unreadable" in left.out
    told = {item["file"]: item for item in json.loads((tmp_path / "out.json").read_text())}
    assert list(told) == ["a.png", "broken.jpg", "c.png", "below/b.png"]
    assert "not one of the formats" in told["broken.jpg"]["error"]

    from swav_tf.data.decode import evaluation_view

    model, recipe, _ = load_classifier(probed)
    for name in ("a.png", "below/b.png", "c.png"):
        image = np.array(Image.open(images / name))
        view = evaluation_view(image, recipe.data.evaluation)
        logits = model(view[None], training=False).numpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)[:5]
        assert [place["class"] for place in told[name]["top"]] == [str(i) for i in order]
        np.testing.assert_allclose(
            [p["probability"] for p in told[name]["top"]], probabilities[order], rtol=1e-4
        )

    (images / "broken.jpg").unlink()
    assert run(*words, "--output", tmp_path / "new" / "out.csv").code == 0
    with (tmp_path / "new" / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "c.png", "below/b.png"]
    assert [row["class_1"] for row in rows] == [told[row["file"]]["top"][0]["class"] for row in rows]
    assert all(row["error"] == "" for row in rows)


# Bug caught: half a file of predictions, or a traceback, after the disk was full.
def test_predictions_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import prediction
    from swav_tf.plumbing.errors import DataError

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = [prediction.Prediction("a.png", ("cat",), (1.0,))]
    for name in ("told.csv", "told.json"):
        with pytest.raises(DataError, match=r"could not be written.*No space left.*another place"):
            prediction.write_predictions(tmp_path / "new" / name, told)
    assert list((tmp_path / "new").iterdir()) == []


# Bug caught: a pretraining run, or no run at all, that ends in a traceback.
def test_a_folder_that_is_no_classifier_is_refused(
    probed: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    for model, folder, code, part in (
        (tmp_path, images, 2, "without config.yaml"),
        (probed.parent / "pretrained", images, 2, "a pretraining run"),
        (probed, tmp_path / "gone", 1, "gone. Check the path"),
    ):
        left = run("predict", model, folder, "--output", tmp_path / "out.csv")
        assert left.code == code
        assert part in left.err


# === validate ===


# Bugs caught: another view, other images or other weights than those of the run's own validation.
def test_validation_finds_the_runs_own_figures(probed: Path, tmp_path: Path, told: Told) -> None:
    words = ["validate", probed, "--json", "--batch", "100", "--output", tmp_path / "results"]
    found = json.loads(told(*words))
    last = json.loads((probed / "summary.json").read_text())["last"]
    assert found["images"] == 360
    assert (found["top1"], found["top5"]) == (last["top1"], last["top5"])
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert (tmp_path / "results" / "per_class.csv").read_text() == (probed / "per_class.csv").read_text()


def write_classes(folder: Path, names: list[str]) -> Path:
    """One image a class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 20, 3), 20 * number, np.uint8)).save(folder / name / "a.png")
    return folder


# Bugs caught: labels by folder number where the classes are others, an unreadable image that changes the figure.
@pytest.mark.parametrize(
    ("names", "broken", "part"),
    [
        (["cat", "dog"], False, "2 only among the validation images: cat, dog"),
        (list("0123456789"), True, "0/b.png cannot be read"),
    ],
)
def test_other_images_are_refused(
    probed: Path, tmp_path: Path, names: list[str], broken: bool, part: str, run: Run
) -> None:
    folder = write_classes(tmp_path / "val", names)
    if broken:
        (folder / "0" / "b.png").write_bytes(b"no picture")
    left = run("validate", probed, folder, "--kind", "class_folders")
    assert left.code == 1
    assert part in left.err
    assert "This is a bug" not in left.err


# Bug caught: figures that were measured and are told to nobody, for want of a place for the tables.
def test_a_place_that_is_none_is_told_before_anything_is_measured(
    probed: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr("swav_tf.training.validation.measure", lambda *images: pytest.fail("it was measured"))
    left = run("validate", probed, "--output", probed / "config.yaml")
    assert left.code == 2
    assert "--output must be a folder" in left.err


# Bug caught: an imported classifier without names that cannot be measured on folders with names.
def test_an_import_without_class_names_takes_those_of_the_images(tmp_path: Path, told: Told) -> None:
    from swav_tf.weights.convert import import_weights
    from swav_tf.weights.layout import Sizes, slots
    from swav_tf.weights.torch_files import write_torch_file

    draw = np.random.default_rng(0)
    state = {
        slot.torch: draw.uniform(0.1, 0.5, slot.shape).astype(np.float32)
        for slot in slots(Sizes("resnet_small"))
    }
    write_torch_file(state, tmp_path / "backbone.pth")
    bias = np.array([0, 9, 0], np.float32)
    linear = {"linear.weight": np.zeros((3, 128), np.float32), "linear.bias": bias}
    write_torch_file(linear, tmp_path / "linear.pth")
    import_weights(tmp_path / "linear.pth", tmp_path / "run", backbone=tmp_path / "backbone.pth")
    folder = write_classes(tmp_path / "val", ["ant", "bee", "cow"])
    told("validate", tmp_path / "run", folder, "--output", tmp_path / "results")
    rows = list(csv.reader((tmp_path / "results" / "per_class.csv").read_text().splitlines()))
    assert rows[1:] == [["ant", "1", "0.0", "1.0"], ["bee", "1", "1.0", "1.0"], ["cow", "1", "0.0", "1.0"]]
