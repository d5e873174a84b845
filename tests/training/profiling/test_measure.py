"""A profile of a tiny recipe: that it is of the steps that training makes, and leaves nothing behind."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.data.decode import decode
from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.training.build import build_swav
from swav_tf.training.profile import largest_batch, measure
from swav_tf.training.profile.exchange import count_exchange
from swav_tf.training.profile.fixed_crops import fixed_parts, share_of_one
from swav_tf.training.profile.largest_batch import LargestBatch, find_largest_batch
from swav_tf.training.profile.memory import Peak, measure_peak
from swav_tf.training.profile.timing import RandomPhotos
from tests.swav_models import tiny_recipe


def test_a_profile_of_random_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(data__kind="class_folders")
    found = measure.profile(recipe, steps=2, images=800, memory=False, quiet=True)
    assert (found.images, found.steps, found.replicas) == (800, 2 * 100, 1)
    assert "random JPEGs" in found.source
    assert found.exchange is None
    assert found.communication_ms == 0
    assert found.hours == pytest.approx(found.steps * found.loop.ms / 3.6e6)
    assert 0 <= found.wait_ms <= found.loop.ms
    assert [part.name for part in found.parts][-1] == "update"
    assert os.listdir(tmp_path) == []


def test_random_photos_are_of_imagenets_size():
    large = tiny_recipe()
    large = large.model_copy(update={"crops": (large.crops[0].model_copy(update={"size": 224}),)})
    photos = RandomPhotos(large, 1000)
    files = [photos.read(index) for index in range(8)]
    assert decode(files[0]).shape == (375, 500, 3)
    assert np.mean([len(file) for file in files]) == pytest.approx(110_000, rel=0.1)
    assert len(set(files)) == 8
    assert photos.read(8) == files[0]


# The same count as by the traced graph of the whole step (tests/method/test_collectives.py); bytes from shapes.
def test_collectives_and_their_bytes(mirrored):
    recipe = tiny_recipe()
    with mirrored.scope():
        model = build_swav(recipe)
    whole = count_exchange(model, fixed_parts(recipe, mirrored), tf.constant(model.wishes))
    assert whole.collectives == 2 * 13 + 3 + 1 + 1
    bn_channels = 2 * sum(layer.gamma.shape[0] for layer in model.backbone.layers if hasattr(layer, "gamma"))
    bn_channels += recipe.model.head_hidden
    gradients = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    numbers = gradients + (2 * bn_channels + 13) + 2 * bn_channels + 3 * 2 * 12 + (2 + 16 + 12 + 2)
    assert whole.megabytes == pytest.approx(4e-6 * numbers)


def test_collectives_of_a_batch_in_parts(mirrored):
    recipe = tiny_recipe(train__accumulation_steps=2)
    with mirrored.scope():
        model = build_swav(recipe)
    parts = count_exchange(model, fixed_parts(recipe, mirrored), tf.constant(model.wishes))
    assert (
        parts.collectives == 2 * (13 + 2 * 13) + 3 + 1 + 1
    )  # one look and one pass with its gradient a part


def test_a_replicas_share():
    recipe = tiny_recipe(train__batch_size=16, train__accumulation_steps=2, method__queue={"length": 64})
    one = share_of_one(recipe, replicas=2)
    assert (one.train.batch_size, one.train.accumulation_steps, one.queue_length) == (4, 1, 32)
    [crops] = fixed_parts(one, tf.distribute.get_strategy())
    assert [tuple(group.shape) for group in crops] == [(4, 2, 16, 16, 3), (4, 2, 12, 12, 3)]


@pytest.fixture(scope="module")
def peak():
    return measure_peak(tiny_recipe())


def test_memory_of_a_process_of_its_own(peak):
    assert peak.fits
    assert peak.replicas == 1
    assert 50 < peak.before_mb < peak.peak_mb < 5000


class NoRecipe:
    train = tiny_recipe().train

    def model_dump_json(self):
        return "{}"


def test_a_failing_process_is_told():
    with pytest.raises(SwavError, match=r"failed \(exit code 1\).*Field required"):
        measure_peak(NoRecipe())


def test_the_largest_batch_on_a_cpu_is_a_line(peak, monkeypatch):
    asked = []

    def line(recipe):
        asked.append(recipe.train.batch_size)
        return dataclasses.replace(peak, peak_mb=500 + 10 * recipe.train.batch_size)

    monkeypatch.setattr(largest_batch, "measure_peak", line)
    monkeypatch.setattr(largest_batch, "available_megabytes", lambda: 1500.0)
    first = line(tiny_recipe())
    found = find_largest_batch(tiny_recipe(), first, tell=asked.append)
    assert found == LargestBatch(100, estimated=True)


def test_the_largest_batch_on_gpus_is_tried(monkeypatch):
    # Two GPUs, two parts: 40 images on each at once are a batch of 160.
    limit = 160

    def tried(recipe):
        return Peak(recipe.train.batch_size <= limit, 0.0, 0.0, on_gpu=True, replicas=2)

    monkeypatch.setattr(largest_batch, "measure_peak", tried)
    recipe = tiny_recipe(train__batch_size=16, train__accumulation_steps=2, method__queue={"length": 64})
    found = find_largest_batch(recipe, tried(recipe), tell=lambda text: None)
    assert found is not None
    assert not found.estimated
    assert 38 <= found.images <= 40


def test_a_batch_that_does_not_fit_is_told_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(measure, "measure_peak", lambda recipe: Peak(False, 0.0, 0.0, True, 1))
    with pytest.raises(SwavError, match="does not fit the memory; --find-batch"):
        measure.profile(tiny_recipe(), quiet=True)


@pytest.mark.parametrize("variable", [("TF_CONFIG", "{}"), ("SLURM_STEP_NUM_TASKS", "4")])
def test_a_cluster_is_refused(variable, monkeypatch):
    monkeypatch.setenv(*variable)
    with pytest.raises(UsageError, match="one machine"):
        measure.profile(tiny_recipe(), quiet=True)
