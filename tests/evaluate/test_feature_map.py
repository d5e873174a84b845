import numpy as np
import pytest
from PIL import Image

from evaluate.feature_map import draw_map, map_features
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.models import feature_file


@pytest.fixture
def two_clouds():
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = (draw.normal(size=(60, 10)) + 8 * np.eye(10)[labels]) * draw.uniform(0.1, 9, (60, 1))
    return feature_file(features, labels)


# Bug caught: separate classes drawn together.
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_separates_separate_classes(tmp_path, two_clouds, method):
    drawn = map_features(two_clouds, method=method, limit=1000)
    labels = two_clouds.labels
    centers = np.stack([drawn.places[labels == c].mean(axis=0) for c in (0, 1)])
    distances = np.linalg.norm(drawn.places[:, None] - centers, axis=-1)
    assert (distances.argmin(axis=1) == labels).mean() > 0.95
    draw_map(tmp_path / "x.png", two_clouds, drawn, method=method)
    colors = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors[np.ptp(colors, axis=1) > 80], axis=0)) > 5


# Bug caught: the length of features drawn instead of their direction.
def test_lengths_do_not_matter(two_clouds):
    features, labels = two_clouds.features, two_clouds.labels
    longer = feature_file(features * np.linspace(1, 50, len(features))[:, None], labels)
    places = [map_features(file, method="pca", limit=100).places for file in (two_clouds, longer)]
    np.testing.assert_allclose(*places, atol=1e-3)


# Bug caught: rows and places of different images when some are sampled.
def test_a_limit_samples(two_clouds):
    drawn, again, other = (map_features(two_clouds, method="pca", limit=20, seed=s) for s in (1, 1, 2))
    assert len(drawn.places) == len(set(drawn.rows.tolist())) == 20
    np.testing.assert_array_equal(drawn.rows, again.rows)
    assert drawn.rows.tolist() != other.rows.tolist()


# Bug caught: a traceback for missing or many labels.
@pytest.mark.parametrize("labels", [np.full(60, -1), np.arange(60), np.arange(60) % 5 - 1])
def test_any_labels_can_be_drawn(tmp_path, two_clouds, labels):
    file = feature_file(two_clouds.features, labels)
    draw_map(tmp_path / "x.png", file, map_features(file, method="pca", limit=100), method="pca")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_maps_that_cannot_be_made(two_clouds):
    with pytest.raises(UsageError, match=r"t-SNE map needs at least 32 images.*Received: 20 images of 10"):
        map_features(two_clouds, method="tsne", limit=20)
    with pytest.raises(UsageError, match="of 2 features"):
        map_features(feature_file(np.ones((9, 1)), np.zeros(9)), method="pca", limit=20)
    with pytest.raises(DataError, match="must contain finite features"):
        map_features(feature_file(np.full((9, 3), np.nan), np.zeros(9)), method="pca", limit=20)
