"""The released layout: same names, same numbers, same outputs."""

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.model.architectures import ARCHITECTURES
from swav_tf.training.build import build_swav, load_swav, read_pretrained
from swav_tf.training.state import named_variables
from swav_tf.weights.convert import export_weights, import_weights
from swav_tf.weights.files import open_weights
from swav_tf.weights.layout import Sizes, fit, slots
from swav_tf.weights.torch_files import read_torch_zip, write_torch_file
from tests.swav_models import tiny_recipe
from tests.weights.released import features, project, random_state, released_keys


def saved(state, path):
    """As the released files are: flat, every key behind `module.`."""
    write_torch_file({f"module.{name}": value for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    """Run folder of random weights that came in the released layout."""
    folder = tmp_path_factory.mktemp("released")
    import_weights(saved(state, folder / "released.pth.tar"), folder / "run")
    return folder / "run"


# Bugs caught: a name, shape or place that is not the released one; a counter too few or too many.
def test_an_export_has_the_released_keys_in_order(imported, tmp_path):
    export_weights(imported, tmp_path / "x.pth.tar")
    tree = read_torch_zip(tmp_path / "x.pth.tar")
    found = {name: (view.array.shape, view.array.dtype.name) for name, view in tree.items()}
    assert list(found.items()) == [(f"module.{name}", row) for name, row in released_keys().items()]


# Bug caught: a table of names or shapes that is not what Keras builds.
@pytest.mark.parametrize("network", ARCHITECTURES)
def test_our_names_are_those_of_the_keras_model(network):
    model = build_swav(tiny_recipe(model__backbone={"name": network}))
    wanted = slots(Sizes(network, head=(24, 16), prototypes=12))
    assert {slot.own: slot.own_shape for slot in wanted} == {
        name: tuple(variable.shape) for name, variable in named_variables(model).items()
    }


def compare(found, expected):
    """Within 1e-5, relative to the largest number and to each number's own row."""
    found = np.asarray(found)
    assert found.shape == expected.shape
    row = np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(found - expected) <= 1e-5 * row), np.max(np.abs(found - expected) / row)


# Bugs caught: axes of a kernel turned wrongly, mean and variance or gamma and beta exchanged, a stride on the
# 1x1, padding that is not symmetric, another epsilon, prototypes transposed, half precision in an import.
def test_outputs_equal_an_independent_forward(state, imported):
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = features(state, images.transpose(0, 3, 1, 2))
    assert expected.std() > 0.1  # no dead network
    projections, scores = project(state, expected)
    model, _ = load_swav(imported)
    found = model.backbone(images, training=False)
    compare(found, expected)
    ours = model.project(tf.cast(found, tf.float32))
    compare(ours[0], projections)
    compare(ours[1], scores)


# Bug caught: images normalised by torchvision's deviations where the weights were trained by SwAV's.
def test_the_images_are_normalised_as_in_training(imported):
    _, recipe = read_pretrained(imported)
    assert recipe.augment.std == (0.228, 0.224, 0.225)
    assert recipe.train.precision == "float32"
    assert (recipe.model.head_hidden, recipe.model.prototypes) == (2048, 3000)


# The same in PyTorch's own words, where it is installed.
def test_outputs_equal_pytorch(state, imported):
    torch = pytest.importorskip("torch")
    from tests.weights.torch_network import swav_outputs

    images = np.random.default_rng(2).normal(size=(2, 96, 96, 3)).astype(np.float32)
    expected = swav_outputs(torch, state, images.transpose(0, 3, 1, 2))
    model, _ = load_swav(imported)
    found = tf.cast(model.backbone(images, training=False), tf.float32)
    for keras, torch_output in zip((found, *model.project(found)), expected, strict=True):
        compare(keras, torch_output)


# Bugs caught: anything at all that is lost, rounded or exchanged on the way in and out.
@pytest.mark.parametrize(("width", "hidden"), [(1, 2048), (2, 8192)])
def test_import_and_export_are_each_others_inverse(width, hidden, tmp_path):
    before = random_state(width, hidden=hidden, seed=width)
    file = saved(before, tmp_path / "a.pth.tar")
    done = import_weights(file, tmp_path / "run")
    assert (done.sizes.width, done.recipe.model.backbone.width) == (width, width)
    export_weights(tmp_path / "run", tmp_path / "b.pth.tar")
    tree = read_torch_zip(tmp_path / "b.pth.tar")
    assert len(tree) == len(before)
    for name, value in before.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(tree[f"module.{name}"].array, value)
    arrays = read_pretrained(tmp_path / "run")[0].arrays
    again = fit(open_weights(tmp_path / "b.pth.tar"), tmp_path).by_own_names(tmp_path)
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
