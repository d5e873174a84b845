import keras
import numpy as np
import pytest

from swav_tf.model.backbone import build_backbone, build_resnet
from swav_tf.model.head import Prototypes, build_head
from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.pretraining import BatchNorm, Model
from swav_tf.weights.layout import Sizes, slots

pytestmark = pytest.mark.usefixtures("networks_released")


def parameters(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


# Bugs caught: a bias on convolutions, a width that misses the stem, another block. (From the layout that imports are
# checked against: some of these networks take gigabytes to build.)
@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("resnet18", 1, 11_176_512),
        ("resnet34", 1, 21_284_672),
        ("resnet50", 1, 23_508_032),
        ("resnet50", 2, 93_907_072),
        ("resnet50", 4, 375_378_176),
        ("resnet50", 5, 586_450_240),
        ("resnet101", 1, 42_500_160),
        ("resnet152", 1, 58_143_808),
        ("wide_resnet50_2", 1, 66_834_240),
        ("wide_resnet101_2", 1, 124_837_696),
    ],
)
def test_parameter_counts(name, width, expected):
    trained = [slot for slot in slots(Sizes(name, width)) if "running" not in slot.torch]
    assert sum(int(np.prod(slot.shape)) for slot in trained) == expected


@pytest.fixture(scope="module")
def resnet50():
    keras.utils.set_random_seed(0)
    return build_resnet("resnet50", batch_norm=BatchNorm())


# Bugs caught: 'same' padding (another size), a stride on the 1x1 of a bottleneck (v1).
def test_spatial_sizes(resnet50):
    last = keras.Model(resnet50.input, resnet50.get_layer("layer4_2_out").output)
    for size, expected in ((224, 7), (96, 3), (225, 8)):
        assert last.compute_output_shape((1, size, size, 3)) == (1, expected, expected, 2048)
    assert resnet50.get_layer("layer2_0_conv2").strides == (2, 2)
    assert resnet50.get_layer("layer2_0_conv1").strides == (1, 1)


def literal_conv(x, kernel, stride, pad):
    """A convolution as sums, float64; x (h, w, c), kernel (k, k, c, f)."""
    x = np.pad(x.astype(np.float64), ((pad, pad), (pad, pad), (0, 0)))
    k = kernel.shape[0]
    rows = range(0, x.shape[0] - k + 1, stride)
    return np.array([[np.tensordot(x[i : i + k, j : j + k], kernel, 3) for j in rows] for i in rows])


# Bugs caught: asymmetric padding, a missing ReLU, a shortcut without its norm, wrong order of operations.
def test_small_network_equals_a_literal_forward():
    keras.utils.set_random_seed(0)
    model = build_resnet("resnet_small", batch_norm=BatchNorm())
    rng = np.random.default_rng(0)
    for v in model.weights:
        if "bn" in v.path:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    w = {v.path.removeprefix("resnet_small/"): v.numpy() for v in model.weights}

    def conv(x, name, stride):
        kernel = w[f"{name}/kernel"]
        return literal_conv(x, kernel, stride, kernel.shape[0] // 2)

    def norm(x, name):
        gamma, beta, mean, var = (
            w[f"{name}/{n}"] for n in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta

    def block(x, name, stride):
        y = np.maximum(norm(conv(x, f"{name}_conv1", stride), f"{name}_bn1"), 0)
        y = norm(conv(y, f"{name}_conv2", 1), f"{name}_bn2")
        if stride > 1:
            x = norm(conv(x, f"{name}_downsample_conv", stride), f"{name}_downsample_bn")
        return np.maximum(x + y, 0)

    image = rng.normal(size=(10, 10, 3)).astype(np.float32)
    x = np.maximum(norm(conv(image, "conv1", 2), "bn1"), 0)
    expected = block(block(x, "layer1_0", 1), "layer2_0", 2).mean(axis=(0, 1))
    np.testing.assert_allclose(model(image[None])[0], expected, rtol=1e-4)


# Bug caught: fan-in where fan-out is meant, a truncated normal, a zero gamma at the end of a block.
def test_initialization(resnet50):
    for name in ("layer1_0_conv2", "layer4_0_conv3", "layer3_0_downsample_conv"):
        kernel = resnet50.get_layer(name).kernel.numpy()
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
        assert np.abs(kernel).max() > 2.5 * kernel.std()
    assert np.all(resnet50.get_layer("layer1_0_bn3").gamma.numpy() == 1)


# Bugs caught: a missing bias or BN in the head; a uniform range by fan-out.
def test_head_is_dense_norm_relu_dense():
    settings = Model(head_hidden=64, projection_dim=16)
    head = build_head(settings, feature_dim=400)
    assert [type(layer).__name__ for layer in head.layers[1:]] == ["Dense", "BatchNorm", "ReLU", "Dense"]
    assert parameters(head) == 400 * 64 + 64 + 2 * 64 + 64 * 16 + 16
    for layer, fan_in in ((head.layers[1], 400), (head.layers[4], 64)):
        for weight in layer.get_weights():
            assert np.abs(weight).max() <= fan_in**-0.5
        assert np.abs(layer.get_weights()[0]).max() > 0.95 * fan_in**-0.5


# Bug caught: prototypes that start with other lengths than 1.
def test_prototypes_start_as_unit_vectors():
    layer = Prototypes(20)
    layer.build((None, 8))
    np.testing.assert_allclose(np.linalg.norm(layer.kernel.numpy(), axis=0), 1, rtol=1e-5)


# Bugs caught: a second rescaling inside KerasCV's network; features that are not pooled.
def test_any_keras_cv_backbone_by_name():
    settings = Model(
        backbone={
            "library": "keras_cv",
            "name": "DenseNetBackbone",
            "arguments": {"stackwise_num_repeats": [1, 1], "growth_rate": 4},
        }
    )
    backbone = build_backbone(settings)
    assert backbone.output_shape == (None, 38)
    assert not any("rescaling" in layer.name for layer in backbone.layers)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"library": "keras_cv", "name": "ResNet51"}, "DenseNetBackbone"),
        ({"library": "keras_cv", "name": "DenseNetBackbone", "arguments": {"depth": 3}}, "depth"),
    ],
)
def test_an_unknown_backbone_is_refused_with_the_known_ones(backbone, message):
    with pytest.raises(RecipeError, match=message):
        build_backbone(Model(backbone=backbone))


# Bug caught: a preset's failed download, which raises a plain Exception, as a traceback.
def test_a_preset_that_cannot_be_downloaded(monkeypatch):
    import keras_cv

    def fetch(*arguments, **settings):
        raise Exception("URL fetch failure on gs://x: -2 -- Name or service not known")

    monkeypatch.setattr(keras_cv.models.DenseNetBackbone, "from_preset", fetch)
    backbone = {"library": "keras_cv", "name": "DenseNetBackbone", "preset": "densenet121_imagenet"}
    with pytest.raises(RecipeError, match=r"preset='densenet121_imagenet'.* URL fetch failure"):
        build_backbone(Model(backbone=backbone))
