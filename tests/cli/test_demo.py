"""The demo from training to the benchmark, with one epoch."""

import json

import pytest
from PIL import Image

from cli import demo
from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.training.build import build_swav
from tests.tiny_network import TINY

SHORT = [
    f"model.backbone.name={TINY}",
    "crops=[{count: 2, size: 16, scale: [0.4, 1]}]",
    "train.epochs=1",
    "train.batch_size=256",
    "monitor.log_every_steps=1",
    "optimizer.warmup_epochs=0",
    "method.prototypes_frozen_steps=0",
]
QUICK = {"seconds": 0.02, "runs": 3, "threads": 1, "cuda_graph": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the demo as if the packages of the export were missing; return its folder and its warnings."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    warnings = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_recipe", lambda name, overrides: load_recipe(name, [*overrides, *SHORT]))
        patch.setattr(demo, "EXPORT_PACKAGES", ("onnx", "no_such_package"))
        patch.setattr(demo, "linear_accuracy", lambda *features: 0.5)  # slow, and tested elsewhere
        patch.setattr(demo.log, "warning", lambda text, *values: warnings.append(text))
        demo.run_demo(run_dir=folder)
    return folder, warnings


# Bug caught: a demo that fails, or ends early without a message, where only the extra `train` is installed.
def test_without_the_packages_of_the_export(finished):
    folder, warnings = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["export"] is None
    assert 0 < summary["knn_top1"] <= 1
    page = (folder / "report.html").read_text()
    assert "Prototypes" in page
    assert "linear classifier" in page
    assert not (folder / "exported").exists()
    assert "Export and benchmark are skipped: no_such_package not installed" in "\n".join(warnings)


# Bugs caught: a file that is not timed, or not compared with Keras.
@pytest.mark.multiprocess
def test_export(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(demo, "CELL", QUICK)
    monkeypatch.setattr(demo, "BATCHES", {"ort-cpu": (1, 8)})  # Keras takes long to start
    found = demo._export(folder, quiet=False)
    assert set(found["files"]) == {"model-fp32.onnx", "model-int8-cpu.onnx"}
    assert all(file["knn_top1"] > 0.1 for file in found["files"].values())
    assert len(found["images_per_second"]) == 4
    page = (folder / "benchmark.html").read_text()
    assert all(text in page for text in ("int8", "ort-cpu"))


# Bugs caught: a demo of a folder that measures on its training images, fails late where there is no test folder, chooses
# another recipe when it resumes, or ends without a result for one unreadable image.
def test_folders_of_images(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="train and test"):
        demo.run_demo(run_dir=tmp_path / "run", data=tmp_path)
    for number in range(40):
        path = tmp_path / ("test" if number % 4 == 0 else "train") / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (6 * number, 200, 0)).save(path)
    recipe = demo._recipe(tmp_path, 5)
    save_recipe(recipe, tmp_path / "config.yaml")
    monkeypatch.setattr(demo, "choose", None)  # which may choose another recipe when the machine is slower
    assert demo._recipe(tmp_path, 5, tmp_path / "config.yaml") == recipe
    (tmp_path / "train" / "1" / "1.png").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(demo, "linear_accuracy", lambda *sets: [len(rows) for rows in sets])
        numbers = demo._linear_accuracies(build_swav(recipe), recipe)
    assert list(numbers.values()) == [[29, 29, 10, 10]] * 3
    images = [open_source(recipe.data, validation=test) for test in (False, True)]
    assert [len(source) for source in images] == [30, 10]
    assert recipe.train.seed == 5
    assert recipe.monitor.knn_every_epochs > 0
