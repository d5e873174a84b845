import sys

import numpy as np
import pytest
from PIL import Image

from evaluate.feature_file import read_feature_file
from evaluate.feature_map import draw_map, map_features
from evaluate.features import extract_features
from evaluate.similar import draw_similar, images_of, query_view, similar_images
from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from tests.evaluate.models import NumpyRunner, class_folders, feature_file


@pytest.fixture
def two_clouds():
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 2
    return feature_file(
        (draw.normal(size=(60, 10)) + 8 * np.eye(10)[labels]) * draw.uniform(0.1, 9, (60, 1)), labels
    )


# === Similar ===


# Bugs caught: the query seen through another view than the file's images, rows taken for numbers in the source
# where an image was unreadable.
def test_an_image_is_nearest_to_itself(tmp_path, folders):
    (folders / "cat" / "00.png").write_bytes(b"")
    runner, images = NumpyRunner(), class_folders(folders)
    extract_features(runner, images, tmp_path / "x.npz", max_bad_share=0.1)
    file = read_feature_file(tmp_path / "x.npz")
    view = query_view(folders / "cat" / "07.png", runner)
    found = similar_images(view, file, runner, k=4)
    assert (found[0].name, found[0].index, found[0].class_name) == ("cat/07.png", 7, "cat")
    assert found[0].cosine == pytest.approx(1)
    assert sorted((s.cosine for s in found), reverse=True) == [s.cosine for s in found]
    picture = draw_similar(view, "07.png", found, images_of(file, runner.data), runner)
    assert np.asarray(picture).std() > 20


# Bugs caught: neighbours by another model's features, pictures of other images than those that were found.
def test_what_does_not_fit_the_features(tmp_path, folders):
    runner, images = NumpyRunner(), class_folders(folders)
    extract_features(runner, images, tmp_path / "x.npz")
    file = read_feature_file(tmp_path / "x.npz")
    view = query_view(folders / "cat" / "07.png", runner)
    with pytest.raises(UsageError, match="features of one model"):
        similar_images(view, file, NumpyRunner("b" * 64), k=4)
    with pytest.raises(UsageError, match="with 3 features an image, model with 5"):
        similar_images(view, feature_file(np.ones((2, 3)), [0, 0]), runner, k=1)
    with pytest.raises(UsageError, match=r"from 1 to the number of images in .*, 20. Received: 21"):
        similar_images(view, file, runner, k=21)
    with pytest.raises(UsageError, match="does not tell where its images are"):
        images_of(feature_file(np.ones((2, 5)), [0, 0]), runner.data)
    folders.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="does not"):
        images_of(file, runner.data)
    assert len(images_of(file, runner.data, str(tmp_path / "moved")).source) == 20
    (tmp_path / "moved" / "cat" / "00.png").unlink()
    with pytest.raises(UsageError, match=r"must hold the 20 images .*Received: 19 images"):
        images_of(file, runner.data, str(tmp_path / "moved"))


# Bug caught: a traceback for a query that is no image.
def test_queries_that_are_no_image(tmp_path):
    (tmp_path / "x.jpg").write_text("text")
    with pytest.raises(DataError, match="must be an image"):
        query_view(tmp_path / "x.jpg", NumpyRunner())
    with pytest.raises(UsageError, match="No such file"):
        query_view(tmp_path / "y.jpg", NumpyRunner())


# === Maps ===


# Bug caught: classes that are apart drawn together.
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_apart_what_is_apart(tmp_path, two_clouds, method):
    drawn = map_features(two_clouds, method=method, limit=1000)
    labels = two_clouds.rows.labels
    centres = np.stack([drawn.places[labels == c].mean(axis=0) for c in (0, 1)])
    distances = np.linalg.norm(drawn.places[:, None] - centres, axis=-1)
    assert (distances.argmin(axis=1) == labels).mean() > 0.95
    draw_map(tmp_path / "x.png", two_clouds, drawn, method=method)
    colours = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours[np.ptp(colours, axis=1) > 80], axis=0)) > 5


# Bug caught: the length of features drawn instead of their direction.
def test_lengths_do_not_matter(two_clouds):
    features, labels = two_clouds.rows.features, two_clouds.rows.labels
    longer = feature_file(features * np.linspace(1, 50, len(features))[:, None], labels)
    places = [map_features(file, method="pca", limit=100).places for file in (two_clouds, longer)]
    np.testing.assert_allclose(*places, atol=1e-3)


# Bug caught: rows and places of different images where only some are drawn.
def test_a_limit_draws_some(two_clouds):
    drawn = map_features(two_clouds, method="pca", limit=20, seed=1)
    assert len(drawn.places) == len(set(drawn.rows.tolist())) == 20
    again = map_features(two_clouds, method="pca", limit=20, seed=1)
    np.testing.assert_array_equal(drawn.rows, again.rows)
    assert drawn.rows.tolist() != map_features(two_clouds, method="pca", limit=20, seed=2).rows.tolist()


# Bug caught: a traceback where labels are missing or many.
@pytest.mark.parametrize("labels", [np.full(60, -1), np.arange(60), np.arange(60) % 5 - 1])
def test_any_labels_can_be_drawn(tmp_path, two_clouds, labels):
    file = feature_file(two_clouds.rows.features, labels)
    draw_map(tmp_path / "x.png", file, map_features(file, method="pca", limit=100), method="pca")
    assert (tmp_path / "x.png").stat().st_size > 5000


# Bug caught: t-SNE or PCA of too little, or UMAP that is missing, told by a traceback.
def test_maps_that_cannot_be_made(monkeypatch, two_clouds):
    with pytest.raises(UsageError, match=r"A tsne map needs at least 32 images.*Received: 20 images of 10"):
        map_features(two_clouds, method="tsne", limit=20)
    with pytest.raises(UsageError, match="of 2 features"):
        map_features(feature_file(np.ones((9, 1)), np.zeros(9)), method="pca", limit=20)
    with pytest.raises(DataError, match="must be finite"):
        map_features(feature_file(np.full((9, 3), np.nan), np.zeros(9)), method="pca", limit=20)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SwavError, match="pip install umap-learn"):
        map_features(two_clouds, method="umap", limit=100)
