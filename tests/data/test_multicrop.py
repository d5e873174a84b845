"""Multi-crop: its draws against an oracle written from the recipe, its pixels against Pillow."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks import pil_pipeline as pil
from swav_tf.data.multicrop import JITTER_ORDERS, MultiCrop, crop_boxes, draw_crops, draw_uniforms
from swav_tf.recipe.pretraining import Augment, CropGroup

LARGE = CropGroup(count=2, size=224, scale=(0.14, 1.0))
SMALL = CropGroup(count=6, size=96, scale=(0.05, 0.14))
RATIO = (3 / 4, 4 / 3)
PAPER = Augment()
OFF = {"jitter": {"probability": 0}, "grayscale_probability": 0, "blur": {"probability": 0}}
MANY = 4000


def distance(sample, other):
    """Kolmogorov-Smirnov statistic of two samples."""
    points = np.sort(np.concatenate([sample, other]))
    ranks = [
        np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (sample, other)
    ]
    return np.abs(ranks[0] - ranks[1]).max()


def oracle_box(height, width, scale, rng):
    """Return a random resized crop, drawn one number at a time."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.fixture(scope="module")
def crops():
    """MANY crops of the paper's small group, drawn from a 375 x 500 image."""
    group = SMALL.model_copy(update={"count": MANY})
    uniforms = draw_uniforms(MANY, seed=1, epoch=2, index=3)
    return draw_crops(uniforms, [group], PAPER, height=375, width=500)


@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (200, 900)])
def test_boxes_have_the_distribution_of_the_recipe(height, width, scale):
    # Ratio uniform instead of log-uniform; side instead of area uniform; no second try;
    # positions that never reach the far edge.
    uniforms = draw_uniforms(MANY, seed=0, epoch=0, index=0)
    scales = [scale] * MANY
    result = np.array(
        crop_boxes(uniforms, height=height, width=width, scales=scales, aspect_ratio=RATIO), float
    )
    rng = random.Random(0)
    expected = np.array([oracle_box(height, width, scale, rng) for _ in range(MANY)], float)

    def measures(boxes):
        top, left, h, w = boxes.T
        return {"top": top, "left": left, "area": h * w, "ratio": w / h, "bottom": top + h, "right": left + w}

    for name, values in measures(result).items():
        assert distance(values, measures(expected)[name]) < 1.95 * math.sqrt(2 / MANY), name  # p = 0.001
    assert (result[:, 0] + result[:, 2]).max() == height
    assert (result[:, 1] + result[:, 3]).max() == width
    assert result.min() >= 0


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_an_image_that_no_box_fits_is_cut_in_the_center(height, width, box):
    # A box larger than the image, or of no pixels.
    uniforms = draw_uniforms(5, seed=0, epoch=0, index=0)
    boxes = crop_boxes(uniforms, height=height, width=width, scales=[(0.9, 1.0)] * 5, aspect_ratio=RATIO)
    assert boxes == [box] * 5


def test_steps_are_drawn_with_the_recipes_probabilities(crops):
    # A probability missing, inverted, or shared by two steps.
    drawn = np.array([(c.flip, c.jitter is not None, c.grayscale, c.blur_sigma is not None) for c in crops])
    expected = np.array([0.5, 0.8, 0.2, 0.5])
    np.testing.assert_allclose(drawn.mean(0), expected, atol=4 * 0.5 / math.sqrt(MANY))
    correlation = np.corrcoef(drawn.T.astype(float))
    assert np.abs(correlation - np.eye(4)).max() < 4 / math.sqrt(MANY)


def test_all_orders_of_the_jitter_are_equally_likely(crops):
    # A fixed order, or a shuffle that favors some.
    orders = Counter(tuple(index for index, _ in c.jitter) for c in crops if c.jitter)
    assert set(orders) == set(JITTER_ORDERS)
    expected = sum(orders.values()) / 24
    chi_squared = sum((n - expected) ** 2 / expected for n in orders.values())
    assert chi_squared < 49.7  # 23 degrees of freedom, p = 0.001


def test_amounts_are_uniform_in_their_ranges_and_independent(crops):
    # Ranges of another adjustment or of half the strength; one uniform number used for two amounts.
    jittered = [c for c in crops if c.jitter]
    columns = np.array([[dict(c.jitter)[i] for i in range(4)] for c in jittered]).T
    sigmas = np.array([c.blur_sigma for c in crops if c.blur_sigma is not None])
    ranges = [(0.2, 1.8)] * 3 + [(-0.2, 0.2), (0.1, 2.0)]
    for amounts, (low, high) in zip([*columns, sigmas], ranges, strict=True):
        assert distance(amounts, np.linspace(low, high, len(amounts))) < 1.95 / math.sqrt(len(amounts))
    places = np.array([c.box[:2] for c in jittered]).T
    correlation = np.corrcoef(np.concatenate([columns, places]))
    assert np.abs(correlation - np.eye(6)).max() < 4 / math.sqrt(len(jittered))


def test_strengths_above_one_do_not_give_negative_factors():
    # A factor of -0.5 would turn the image inside out.
    augment = Augment(jitter={"brightness": 1.5, "contrast": 1.5, "saturation": 1.5, "probability": 1})
    group = LARGE.model_copy(update={"count": 500})
    uniforms = draw_uniforms(500, seed=0, epoch=0, index=0)
    crops = draw_crops(uniforms, [group], augment, height=50, width=50)
    assert min(amount for c in crops for index, amount in c.jitter if index != 3) >= 0


def test_crops_are_pillows_for_the_same_draws(photo):
    # Any step left out, doubled, or in another order; crops cut from another image.
    multicrop = MultiCrop((LARGE, SMALL), PAPER)
    image = Image.fromarray(photo)
    for index in range(12):
        key = {"seed": 5, "epoch": 1, "index": index}
        expected = pil.multicrop(image, (LARGE, SMALL), PAPER, **key)
        for mine, reference in zip(multicrop(photo, **key), expected, strict=True):
            assert mine.shape == reference.shape
            assert mine.dtype == np.uint8
            worst = np.abs(mine.astype(int) - reference).mean((1, 2, 3)).max()
            assert worst < 9  # strong contrast multiplies the few levels by which resizing differs


def test_pixels_have_pillows_mean_and_variance(photo):
    # Crops too dark, too soft or too colorful on average, from draws independent of Pillow's.
    group = SMALL.model_copy(update={"size": 32, "count": 600})
    result = MultiCrop((group,), PAPER)(photo, seed=1, epoch=0, index=0)[0] / 255.0
    expected = pil.multicrop(Image.fromarray(photo), (group,), PAPER, seed=2, epoch=0, index=0)[0] / 255.0
    for statistic in (np.mean, np.std):
        a, b = (
            statistic(crops, axis=(1, 2)) for crops in (result, expected)
        )  # one for each crop and channel
        spread = np.sqrt((a.var(0) + b.var(0)) / 600)
        assert (np.abs(a.mean(0) - b.mean(0)) < 3.5 * spread).all()


def test_draws_depend_on_seed_epoch_image_attempt_and_crop():
    # An epoch that repeats the last one's crops, or two images that share their crops.
    key = {"seed": 1, "epoch": 2, "index": 3, "attempt": 0}
    base = draw_uniforms(8, **key)
    np.testing.assert_array_equal(base, draw_uniforms(8, **key))
    everything = [base]
    everything += [draw_uniforms(8, **{**key, name: value + 1}) for name, value in key.items()]
    everything.append(draw_uniforms(8, **{**key, "epoch": 3, "index": 2}))
    numbers = np.concatenate([rows.ravel() for rows in everything])
    assert len(np.unique(numbers)) == len(numbers)


def test_the_same_boxes_without_color():
    # Draws that shift when a step is turned off.
    uniforms = draw_uniforms(2, seed=0, epoch=0, index=7)
    full = draw_crops(uniforms, [LARGE], PAPER, height=427, width=640)
    half = draw_crops(uniforms, [LARGE], Augment(**OFF), height=427, width=640)
    assert [(c.box, c.flip) for c in full] == [(c.box, c.flip) for c in half]
    assert all(c.jitter is None and not c.grayscale and c.blur_sigma is None for c in half)


def test_flip_mirrors_the_box_it_was_drawn_with():
    # A flip that moves the box, or turns the image upside down.
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    key = {"seed": 3, "epoch": 0, "index": 0}
    views = [MultiCrop((LARGE,), Augment(flip_probability=p, **OFF))(ramp, **key)[0] for p in (0.0, 1.0)]
    np.testing.assert_array_equal(views[0][:, :, ::-1], views[1])
