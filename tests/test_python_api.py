"""The public names of swav_tf, as the README uses them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import swav_tf


# Bug caught: a public name that does not exist.
@pytest.mark.parametrize("name", swav_tf.__all__)
def test_every_name_exists(name):
    assert getattr(swav_tf, name) is not None
    with pytest.raises(AttributeError, match="load_recipe"):
        swav_tf.no_such_name  # noqa: B018


# Bug caught: an import of six seconds for a recipe alone.
@pytest.mark.multiprocess
def test_recipes_need_no_tensorflow():
    code = "import sys, swav_tf; swav_tf.load_recipe('demo'); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# Bugs caught: documented code that fails; a file of `model.save` that a new process cannot load, or that loses weights.
# (test_swav_step.py has the rest of the state.)
@pytest.mark.multiprocess
def test_fit_save_and_load_as_documented(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(swav_tf.__file__).parents[1] / "docs" / "keras.md").read_text()
    fit, load = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(fit, names)
    model, history = names["model"], names["history"].history
    assert len(history["loss"]) == 2
    model.save("best.keras")
    np.savez(
        "expected.npz",
        images=names["images"],
        features=model.features(names["images"]),
    )
    load += """
import numpy as np
expected = np.load("expected.npz")
def close(found, name):
    np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)
close(model.features(expected["images"]), "features")
close(features(model.normalize(expected["images"])), "features")
assert int(model.optimizer.iterations) == 8
"""
    subprocess.run([sys.executable, "-c", load], check=True, timeout=900)


# Bug caught: a step on the user's own crops that no longer works as the README shows, or for digits only.
@pytest.mark.parametrize("kind", ["digits", "images"])
def test_a_step_on_own_crops(tmp_path, kind):
    from swav_tf import MultiCrop, build_swav, load_recipe, open_source, read_image

    digits = load_recipe("demo", ["train.batch_size=8"])
    recipe = digits
    if kind == "images":
        for i in range(8):
            Image.fromarray(read_image(open_source(digits.data), i)).save(tmp_path / f"{i}.png")
        settings = ["data={kind: images}", f"data.path={tmp_path}", "monitor.knn_every_epochs=0"]
        recipe = load_recipe("demo", ["train.batch_size=8", *settings])
    model = build_swav(recipe, steps_per_epoch=100)
    images, multicrop = open_source(recipe.data), MultiCrop(recipe.crops, recipe.augment)
    rows = [multicrop(read_image(images, i), seed=0, epoch=0, index=i) for i in range(8)]
    crops = [np.stack(group) for group in zip(*rows, strict=True)]
    assert np.isfinite(model.train_on_crops(crops)["loss"])
    assert model.features(np.stack([read_image(images, i) for i in range(8)])).shape == (8, 128)
