"""A profile measures the steps that training makes, and writes nothing."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.data.decode import decode
from swav_tf.planning.estimate import IMAGENET_IMAGES
from swav_tf.plumbing.errors import UsageError
from swav_tf.training.profile.measure import RandomPhotos, fixed_parts, profile, timing_of
from tests.swav_models import tiny_recipe


def test_a_profile_of_random_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = profile(tiny_recipe(data__kind="class_folders", train__accumulation_steps=2), steps=2)
    assert (found.images, found.steps, found.replicas) == (IMAGENET_IMAGES, 2 * (IMAGENET_IMAGES // 8), 1)
    assert "random JPEGs" in found.source
    assert found.hours == pytest.approx(found.steps * found.loop.ms / 3.6e6)
    assert 0 <= found.wait_ms <= found.loop.ms
    assert 50 < found.memory_mb < 20_000
    assert os.listdir(tmp_path) == []


def test_random_photos_have_imagenets_size():
    large = tiny_recipe()
    large = large.model_copy(update={"crops": (large.crops[0].model_copy(update={"size": 224}),)})
    photos = RandomPhotos(large)
    files = [photos.read(index) for index in range(8)]
    assert decode(files[0]).shape == (375, 500, 3)
    assert np.mean([len(file) for file in files]) == pytest.approx(110_000, rel=0.1)
    assert len(set(files)) == 8
    assert photos.read(8) == files[0]


def test_fixed_crops_are_a_part_of_the_batch():
    recipe = tiny_recipe(train__batch_size=16, train__accumulation_steps=2)
    parts = fixed_parts(recipe, tf.distribute.get_strategy())
    shapes = [[tuple(group.shape) for group in crops] for crops in parts]
    assert shapes == [[(8, 2, 16, 16, 3), (8, 2, 12, 12, 3)]] * 2


WORKERS = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    "variables", [{"TF_CONFIG": json.dumps(WORKERS)}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}]
)
def test_a_cluster_is_refused(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="one machine"):
        profile(tiny_recipe(), steps=2)


def test_means_and_spread_of_times():
    timing = timing_of([0.1, 0.2, 0.3, 0.4, 0.5], cpu=3.0)
    assert (timing.ms, timing.cpu_ms) == (pytest.approx(300), pytest.approx(600))
    assert timing.spread == pytest.approx(0.15 / 0.3)  # quartiles 0.15 and 0.45
