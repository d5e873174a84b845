"""The demo from training to the report, with one epoch."""

import json
import shutil

import pytest
from PIL import Image

from cli import demo
from cli.demo_export import export_and_measure, missing_packages, write_demo_page
from evaluate.benchmark.schema import Benchmark, Settings
from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe

SHORT = [
    "train.epochs=1",
    "train.batch_size=256",
    "monitor.log_every_steps=1",
    "optimizer.warmup_epochs=0",
    "method.prototypes_frozen_steps=0",
]
QUICK = Settings(seconds=0.02, runs=3, threads=1, cuda_graph=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the demo as if the packages of the export were missing; return its folder and its warnings."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    warnings = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_recipe", lambda name, overrides: load_recipe(name, [*overrides, *SHORT]))
        patch.setattr(demo, "missing_packages", lambda: ["tf2onnx"])
        patch.setattr(demo, "linear_accuracy", lambda *features: 0.5)  # slow, and tested elsewhere
        patch.setattr(demo.log, "warning", lambda text, *values: warnings.append(text % values))
        demo.run_demo(run_dir=folder)
    return folder, warnings


# Bug caught: a demo that fails, or ends early without a message, where only the extra `train` is installed.
def test_without_the_packages_of_the_export(finished, monkeypatch):
    folder, warnings = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["export"] is None
    assert 0 < summary["knn_top1"] <= 1
    assert "Prototypes" in (folder / "report.html").read_text()
    assert not (folder / "exported").exists()
    assert "Export and benchmark are skipped: tf2onnx not installed" in "\n".join(warnings)
    assert missing_packages() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    assert missing_packages() == ["onnx"]


# Bugs caught: an accuracy of other images than the test digits, a page without the picture or a file.
@pytest.mark.multiprocess
def test_export_and_page(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    recipe = load_recipe("demo")
    test = open_source(recipe.data, validation=True)
    images, labels = demo._images(test, recipe), demo._labels(test)
    exported = export_and_measure(folder, images, labels, settings=QUICK, keras=False)
    assert Benchmark.model_validate_json((folder / "benchmark.json").read_bytes()) == exported.benchmark
    assert all(cell.status == "ok" for cell in exported.benchmark.cells)
    summary = exported.summary()
    assert set(summary["files"]) == {"model-fp32.onnx", "model-int8-cpu.onnx"}
    assert len(summary["images_per_second"]) == 6
    parity = json.loads((folder / "exported" / "parity.json").read_text())
    assert parity["files"]["model-int8-cpu.onnx"]["knn_images"] == len(labels) == 360
    write_demo_page(
        tmp_path / "demo.html",
        trained=folder / "report.html",
        accuracies={"raw pixels": (0.5, 0.25), "SwAV": (0.987, 0.5)},
        summary=json.loads((folder / "summary.json").read_text()),
        exported=exported,
    )
    page = (tmp_path / "demo.html").read_text()
    for text in ('href="report.html"', "raw pixels", "98.7 %", "model-int8-cpu.onnx", "ort-cpu"):
        assert text in page
    assert "http" not in page


# Bugs caught: a demo of a folder that measures on its training images, or that fails late where there is no test folder.
def test_folders_of_images(tmp_path):
    with pytest.raises(UsageError, match="train and test"):
        demo.run_demo(run_dir=tmp_path / "run", data=tmp_path)
    for number in range(40):
        path = tmp_path / ("test" if number % 4 == 0 else "train") / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (6 * number, 200, 0)).save(path)
    recipe = demo._recipe(tmp_path, 5)
    images = [open_source(recipe.data, validation=test) for test in (False, True)]
    assert [len(source) for source in images] == [30, 10]
    assert recipe.train.seed == 5
