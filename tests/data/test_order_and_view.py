"""The order of the images, and the evaluation view."""

import numpy as np
import pytest
from PIL import Image

from swav_tf.data.decode import evaluation_view
from swav_tf.data.order import epoch_order
from swav_tf.recipe.pretraining import EvaluationView


def test_every_epoch_is_another_permutation():
    # Images left out or repeated; one order for all epochs or seeds.
    orders = [epoch_order(1000, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in range(5)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    same = np.array([[np.mean(a == b) for a in orders] for b in orders])
    assert same[~np.eye(10, dtype=bool)].max() < 0.01


def test_an_order_is_a_function_of_seed_and_epoch():
    # A cached order that a caller changed, or one drawn from a stream that runs on.
    first = epoch_order(50, seed=3, epoch=7)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    expected = first.copy()
    for epoch in range(5):
        epoch_order(50, seed=3, epoch=epoch)
    np.testing.assert_array_equal(epoch_order(50, seed=3, epoch=7), expected)


def test_the_shuffle_is_global():
    # A shuffle buffer, or shuffled shards read one after the other: neighbours on disk stay neighbours in the epoch,
    # and a batch of a data set that lies sorted by class has few classes.
    images, classes, batch = 128_000, 1000, 256
    orders = [epoch_order(images, seed=31, epoch=epoch) for epoch in (0, 1)]
    places = np.arange(images)
    for one, other in ((orders[0], places), (orders[1], places), (orders[0], orders[1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(images)  # five standard deviations
    distances = np.abs(np.diff(orders[0])) / images
    assert distances.mean() == pytest.approx(1 / 3, abs=0.005)  # of two uniform numbers
    distinct = [len(set(part)) for part in (orders[0] * classes // images).reshape(-1, batch)]
    assert np.mean(distinct) == pytest.approx(classes * (1 - (1 - 1 / classes) ** batch), rel=0.01)  # 226


@pytest.mark.parametrize("turned", [False, True])
def test_evaluation_view_is_pillows(photo, turned):
    # The long side resized, the aspect ratio lost, no antialias, or a corner for the centre.
    image = np.ascontiguousarray(photo.transpose(1, 0, 2)) if turned else photo
    height, width = image.shape[:2]
    size = (256 * width // min(height, width), 256 * height // min(height, width))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), float)
    ours = evaluation_view(image, EvaluationView())
    assert ours.shape == (224, 224, 3)
    assert ours.flags.c_contiguous
    assert np.abs(ours - expected).mean() < 2
    assert np.abs(evaluation_view(image[::-1], EvaluationView()) - expected).mean() > 20


def test_an_image_of_the_views_size_is_left_alone(photo):
    image = photo[:32, :32]
    np.testing.assert_array_equal(evaluation_view(image, EvaluationView(resize=32, crop=32)), image)


def test_a_crop_larger_than_the_image_is_refused(photo):
    with pytest.raises(ValueError, match="must fit"):
        evaluation_view(photo, EvaluationView(resize=200, crop=224))
