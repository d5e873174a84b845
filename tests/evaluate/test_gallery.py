"""The page of clusters and the picture of similar images."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from evaluate.clusters import write_gallery
from evaluate.feature_file import read_feature_file
from evaluate.features import extract_features
from evaluate.images import open_images, thumbnail
from evaluate.similar import draw_similar, images_of, query_view, similar_images
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.models import NumpyBackend, class_folders, feature_file, make_class_folders
from tests.evaluate.test_clusters import assign


def write_page(folder, images, *, each, prototypes):
    clusters = assign(images, folder, images_of_each=each)
    write_gallery(folder, clusters, images, NumpyBackend(), prototypes=prototypes)
    return (folder / "index.html").read_text(encoding="utf-8")


# Bugs caught: a page that loads anything from the network, a file name that is run as HTML.
def test_the_page_is_self_contained(tmp_path):
    root = make_class_folders(tmp_path / "images", classes=("<script>alert(1)<", "b"), each=4)
    page = write_page(tmp_path, class_folders(root), each=3, prototypes=2)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert (page.count("<article>"), page.count("<figure>")) == (2, 6)
    assert {address.partition(":")[0] for address in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data"}
    assert not re.search(r"url\(|@import|http", re.sub(r'src="[^"]*"', "", page))


# Bug caught: pictures of other images than their captions say, when an earlier image is unreadable.
def test_pictures_are_of_the_images_named(tmp_path, folders):
    (folders / "cat" / "00.png").write_bytes(b"x")
    images = class_folders(folders)
    page = write_page(tmp_path, images, each=4, prototypes=9)
    figures = re.findall(r'src="data:image/[a-z]+;base64,([^"]*)" alt="(.*?), class', page)
    numbers = {images.source.image_name(i): i for i in range(20)}
    assert len(figures) >= 8
    for encoded, name in figures:
        picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        number = numbers[html.unescape(name)]
        expected = thumbnail(images.source, number, NumpyBackend.input_view, 96)
        assert np.abs(np.asarray(picture, float) - np.asarray(expected, float)).mean() < 8


@pytest.fixture
def features(tmp_path, folders):
    """A feature file of the folders."""
    extract_features(NumpyBackend(), class_folders(folders), tmp_path / "x.npz", max_bad_share=0.1)
    return read_feature_file(tmp_path / "x.npz")


# Bugs caught: the query in another view than the file's images, rows taken for numbers in the source when an image
# was unreadable.
def test_an_image_is_nearest_to_itself(tmp_path, folders):
    (folders / "cat" / "00.png").write_bytes(b"x")
    model, images = NumpyBackend(), class_folders(folders)
    extract_features(model, images, tmp_path / "x.npz", max_bad_share=0.1)
    file = read_feature_file(tmp_path / "x.npz")
    view = query_view(folders / "cat" / "07.png", model)
    found = similar_images(view, file, model, k=8)
    assert (found[0]["name"], found[0]["index"], found[0]["class"]) == ("cat/07.png", 7, "cat")
    assert found[0]["cosine"] == pytest.approx(1)
    assert sorted((s["cosine"] for s in found), reverse=True) == [s["cosine"] for s in found]
    picture = draw_similar(view, "07.png", found, images_of(file, model.data), model)
    assert np.asarray(picture).std() > 20


# Bug caught: neighbors by another model's features.
def test_features_of_another_model(folders, features):
    model = NumpyBackend()
    view = query_view(folders / "cat" / "07.png", model)
    with pytest.raises(UsageError, match="come from the same model"):
        similar_images(view, features, NumpyBackend("b" * 64), k=4)
    with pytest.raises(UsageError, match="with 3 features per image, model with 5"):
        similar_images(view, feature_file(np.ones((2, 3)), [0, 0]), model, k=1)
    with pytest.raises(UsageError, match=r"from 1 to the number of images in .*, 20. Received: 21"):
        similar_images(view, features, model, k=21)


# Bug caught: a warning of replaced pictures, only because their labels came from a list.
def test_labels_of_a_list_are_no_change(tmp_path, folders, caplog):
    data, table = NumpyBackend.data, tmp_path / "labels.csv"
    names = [f"{p.parent.name}/{p.name}" for p in sorted(folders.glob("*/*.png"))]
    table.write_text("path,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    images = open_images(str(folders), like=data, kind="images", labels=str(table))
    extract_features(NumpyBackend(), images, tmp_path / "x.npz")
    file = read_feature_file(tmp_path / "x.npz")
    assert len(images_of(file, data).source) == 20
    assert "changed in size or modification time" not in caplog.text
    (folders / "cat" / "00.png").touch()
    images_of(file, data)
    assert "changed in size or modification time" in caplog.text
    table.unlink()
    assert len(images_of(file, data).source) == 20


# Bug caught: pictures of other images than those that were found.
def test_images_that_moved_or_changed(tmp_path, folders, features):
    data = NumpyBackend.data
    with pytest.raises(UsageError, match="must specify the source of its images"):
        images_of(feature_file(np.ones((2, 5)), [0, 0]), data)
    moved = tmp_path / "moved"
    folders.rename(moved)
    with pytest.raises(DataError, match="images"):
        images_of(features, data)
    assert len(images_of(features, data, str(moved)).source) == 20
    (moved / "cat" / "00.png").rename(moved / "cat" / "99.png")
    with pytest.raises(UsageError, match=r"must contain the 20 images .*with other names"):
        images_of(features, data, str(moved))
