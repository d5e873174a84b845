"""The released layout: same names, same numbers, same outputs."""

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.model.architectures import ARCHITECTURES
from swav_tf.training.build import build_swav, load_swav, read_pretrained
from swav_tf.training.state import named_variables
from swav_tf.weights.convert import export_weights, import_weights
from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.torch_files import read_torch_zip, write_torch_file
from tests.swav_models import tiny_recipe
from tests.weights.released import features, project, random_state, released_keys

pytestmark = pytest.mark.usefixtures("networks_released")


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    """Run folder of random weights that came in the released layout."""
    folder = tmp_path_factory.mktemp("released")
    write_torch_file({f"module.{name}": value for name, value in state.items()}, folder / "x.pth.tar")
    import_weights(folder / "x.pth.tar", folder / "run")
    return folder / "run"


# Bugs caught: a table of names or shapes that is not what Keras builds; an architecture that does not build. (The deep
# ones differ from resnet50 by numbers of the table only.)
@pytest.mark.parametrize(
    ("network", "width"),
    [(name, 1) for name in ARCHITECTURES if "101" not in name and "152" not in name] + [("resnet50", 2)],
)
def test_names_and_sizes_are_those_of_the_keras_model(network, width):
    model = build_swav(tiny_recipe(model__backbone={"name": network, "width": width}))
    sizes = Sizes(network, width, head=(24, 16), prototypes=12)
    turned = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # from PyTorch's layout to Keras', by number of axes
    expected = {
        slot.own: tuple(slot.shape[axis] for axis in turned[len(slot.shape)]) for slot in slots(sizes)
    }
    assert expected == {name: tuple(variable.shape) for name, variable in named_variables(model).items()}
    assert model.backbone(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, sizes.feature_dim)


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


# Bugs caught: anything that is lost, rounded or exchanged on the way in and out; names or an order that differ from the
# released ones; a counter too few or too many.
def test_an_export_is_the_released_file_again(state, imported, tmp_path):
    export_weights(imported, tmp_path / "x.pth.tar")
    tree = {name: view.array for name, view in read_torch_zip(tmp_path / "x.pth.tar").items()}
    found = [(name, (array.shape, array.dtype.name)) for name, array in tree.items()]
    assert found == [(f"module.{name}", row) for name, row in released_keys().items()]
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(tree[f"module.{name}"], value)
