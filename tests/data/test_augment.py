"""Image operations compared with Pillow and with formulas."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks import pil_pipeline as pil
from swav_tf.data import augment as ops

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def difference(result, expected):
    return np.abs(result.astype(float) - np.asarray(expected, float)).mean()


@pytest.mark.parametrize("shrink", [0.5, 0.9, 1.02, 1.3, 1.5, 1.8, 2.1, 2.3, 3.1, 4.4])
def test_resize_is_antialiased_like_pillows(photo, shrink):
    # Plain interpolation, without antialiasing, is off by 4 to 9 levels from a factor of 1.5 on.
    size, box = round(250 / shrink), (40, 30, 250, 250)
    result = ops.resize_box(photo, box, size, size)
    expected = np.asarray(pil.resized_crop(Image.fromarray(photo), box, size))
    assert difference(result, expected) < 2.5
    assert result.std() == pytest.approx(expected.std(), rel=0.01)
    assert result.mean() == pytest.approx(expected.mean(), abs=0.25)


def test_resize_of_an_oblong_box_filters_each_axis_by_its_own_factor(photo):
    # Height and width swapped anywhere, or one factor used for both.
    box = (10, 20, 100, 300)
    expected = np.asarray(pil.resized_crop(Image.fromarray(photo), box, 96))
    assert difference(ops.resize_box(photo, box, 96, 96), expected) < 1.3

    stripes = np.zeros((96, 300, 3), np.uint8)
    stripes[::2] = 255  # as fine as can be, but along the axis that does not shrink
    for image, axis in ((stripes, 0), (np.ascontiguousarray(stripes.transpose(1, 0, 2)), 1)):
        view = ops.resize_box(image, (0, 0, *image.shape[:2]), 96, 96)
        np.testing.assert_array_equal(view.mean((1 - axis, 2)), np.tile([255, 0], 48))


def test_resize_does_not_look_outside_the_box():
    # A filter run over the complete image would let the frame's white bleed in.
    image = np.full((100, 100, 3), 255, np.uint8)
    image[20:80, 20:80] = 0
    assert ops.resize_box(image, (20, 20, 60, 60), 25, 31).max() == 0


@pytest.mark.parametrize("shrink", [1.6, 2.1, 2.6, 3.7, 5.7])
def test_resize_removes_what_would_alias(shrink):
    # Stripes too fine for the result must become gray, as with Pillow, not broad false stripes.
    image = np.zeros((300, 300, 3), np.uint8)
    image[:, ::2] = 255
    size = round(300 / shrink)
    result = ops.resize_box(image, (0, 0, 300, 300), size, size).astype(float).std()
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR), float).std()
    assert result < expected + 32  # plain interpolation keeps 73 of the stripes' 127


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_adjustments_are_pillows(photo, kind, factor):
    # Wrong gray weights, a contrast about 128 instead of the mean, no clipping, a level lost at each adjustment.
    result = ops.ADJUSTMENTS[kind](photo, factor, None)
    if factor == 1:
        np.testing.assert_array_equal(result, photo)
    expected = np.asarray(pil.ADJUSTMENTS[kind](Image.fromarray(photo), factor))
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert difference(result, expected) < 0.3


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.07, 0.1, 0.2, 0.5])
def test_hue_is_pillows(photo, turn):
    # OpenCV's 180-step hue taken for one of 256 steps; a shift that saturates instead of wrapping.
    result = ops.hue(photo, turn)
    expected = pil.hue(Image.fromarray(photo), turn)
    assert difference(result, expected) < 0.6
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert ops.hue(red, 1 / 3)[0, 0] == pytest.approx([0, 255, 0], abs=6)


def test_adjustments_clip_one_after_the_other(photo):
    # Adjustments fused to one matrix would only clip at the end and bring burnt highlights back.
    result = ops.contrast(ops.brightness(photo, 1.8), 0.4)
    expected = pil.ADJUSTMENTS[CONTRAST](pil.ADJUSTMENTS[BRIGHTNESS](Image.fromarray(photo), 1.8), 0.4)
    assert difference(result, expected) < 0.1


def test_grayscale_is_pillows_luma(photo):
    # Channels taken for blue, green, red.
    result, expected = ops.grayscale(photo), np.asarray(pil.grayscale(Image.fromarray(photo)))
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert (result[..., :1] == result).all()


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.59, 0.6, 1.0, 1.5, 2.0, 6.0])
def test_blur_spreads_a_point_by_sigma(sigma):
    # A fixed kernel, sigma taken for a radius in kernel pixels, or one size for all sigmas.
    image = np.zeros((61, 61, 3), np.uint8)
    image[26:35, 26:35] = 255  # a square: its own variance is (9**2 - 1) / 12 an axis
    profile = ops.gaussian_blur(image, sigma)[..., 1].astype(float).sum(0)
    x = np.arange(61)
    mean = (profile * x).sum() / profile.sum()
    variance = (profile * (x - mean) ** 2).sum() / profile.sum() - 80 / 12
    assert mean == pytest.approx(30, abs=0.01)
    assert variance == pytest.approx(sigma**2, rel=0.08, abs=0.03)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.8, 1.4, 2.0])
@pytest.mark.parametrize("side", [96, 224])
def test_blur_is_pillows_at_any_crop_size(photo, sigma, side):
    # Sigma scaled by the crop's size: the recipe blurs large and small crops by the same sigma.
    crop = photo[100 : 100 + side, 50 : 50 + side]
    expected = np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(sigma)))
    assert difference(ops.gaussian_blur(crop, sigma), expected) < 1


@pytest.mark.parametrize("index", range(6))
def test_operations_may_write_over_their_input(photo, index):
    # OpenCV reads pixels that it has already overwritten.
    operation = [
        *(lambda x, out, adjust=adjust: adjust(x, 0.19, out) for adjust in ops.ADJUSTMENTS),
        lambda x, out: ops.grayscale(x, out),
        lambda x, out: ops.gaussian_blur(x, 1.7, out),
    ][index]
    expected, image = operation(photo, None), photo.copy()
    operation(image, image)
    np.testing.assert_array_equal(image, expected)
