"""The public names of swav_tf, as the README uses them."""

import subprocess
import sys

import numpy as np
import pytest

import swav_tf


# Bug caught: a public name that does not exist.
@pytest.mark.parametrize("name", swav_tf.__all__)
def test_every_name_exists(name):
    assert getattr(swav_tf, name) is not None
    with pytest.raises(AttributeError, match="load_recipe"):
        swav_tf.no_such_name  # noqa: B018


# Bug caught: an import of six seconds for a recipe alone.
def test_recipes_need_no_tensorflow():
    code = "import sys, swav_tf; swav_tf.load_recipe('demo'); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# Bug caught: a step on the user's own crops that no longer works as the README shows.
def test_a_step_on_own_crops():
    from swav_tf import MultiCrop, build_swav, load_recipe, open_source

    recipe = load_recipe("demo", ["train.batch_size=8"])
    model = build_swav(recipe, steps_per_epoch=100)
    images = open_source(recipe.data)
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    rows = [multicrop(images.read(i), seed=0, epoch=0, index=i) for i in range(8)]
    crops = [np.stack(group) for group in zip(*rows, strict=True)]
    measures = model.train_on_crops(crops)
    assert np.isfinite(measures["loss"])
    features = model.features(np.stack([images.read(i) for i in range(8)]))
    assert features.shape == (8, 128)
