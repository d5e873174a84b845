import csv
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cli.options import SearchChoice
from evaluate.feature_file import read_feature_file
from evaluate.features import extract_features
from evaluate.images import open_images
from evaluate.neighbors import (
    find_groups,
    near_threshold,
    neighbor_graph,
    open_found,
    outlier_scores,
    write_duplicates,
    write_outliers,
)
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data
from tests.evaluate.models import NumpyBackend, class_folders, feature_file


@pytest.fixture
def file(tmp_path, folders):
    """Features of the folders, with an exact and a near copy of one image, and one exact copy of another."""
    cat, dog = sorted(folders.iterdir())
    (cat / "exact.png").write_bytes((cat / "03.png").read_bytes())
    (dog / "twin.png").write_bytes((cat / "05.png").read_bytes())
    pixels = np.array(Image.open(cat / "03.png"))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(cat / "near.png")
    extract_features(NumpyBackend(), class_folders(folders), tmp_path / "x.npz")
    return read_feature_file(tmp_path / "x.npz")


def table(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


# Bugs caught: an image that is its own duplicate, groups that are merged or cut, a near copy that is called exact, a
# group of the first images only, pictures or names of other images.
def test_duplicates(tmp_path, file):
    groups = find_groups(neighbor_graph(file), 0.99)
    report = write_duplicates(tmp_path, file, groups, shown=1, threshold=0.99)
    assert report == {"groups": 2, "images": 5, "exact_copies": 2}
    found = {}
    for row in table(tmp_path / "duplicates.csv"):
        found.setdefault(row["group"], set()).add((row["name"].split("/")[1], row["exact"]))
    assert sorted(found.values(), key=len) == [
        {("05.png", "A"), ("twin.png", "A")},
        {("03.png", "A"), ("exact.png", "A"), ("near.png", "")},
    ]
    page = (tmp_path / "index.html").read_text()
    assert (page.count("<article>"), page.count("<figure>")) == (1, len(groups[0].rows))
    assert "at least 0.99 form a group" in page


# Bug caught: a search of hours that ends without its table, as one picture cannot be shown.
def test_an_unreadable_picture_is_gray(tmp_path, file, folders, logged):
    groups = find_groups(neighbor_graph(file), 0.99)
    (folders / "cat" / "near.png").write_bytes(b"not an image")
    write_duplicates(tmp_path, file, groups, shown=9, threshold=0.99)
    assert len(table(tmp_path / "duplicates.csv")) == 5
    assert (tmp_path / "index.html").read_text().count("<figure>") == 5
    assert any("cat/near.png cannot be read and is shown in gray" in text for _, text in logged)


# Bug caught: pictures and exact copies from the usual column, although the features are those of another one.
def test_images_of_a_column_of_their_own(tmp_path, folders):
    photos = [path.read_bytes() for path in sorted(folders.glob("*/*.png"))]
    columns = {"image": photos[:1] * 20, "raw": photos, "label": [0] * 20, "kind": [0] * 10 + [1] * 10}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    like = Data(image_key="raw", label_key="kind")
    extract_features(NumpyBackend(), open_images(str(tmp_path / "x.parquet"), like=like), tmp_path / "x.npz")
    source = open_found(read_feature_file(tmp_path / "x.npz"), (), None).source
    assert [bytes(source.read(i)) for i in range(20)] == photos
    assert source.labels().tolist() == columns["kind"]


# Bug caught: an error after hours of search, whose result is lost.
def test_moved_images_are_noticed_before_the_search(tmp_path, file, folders, monkeypatch):
    monkeypatch.setattr("evaluate.neighbors.neighbor_graph", lambda *_, **__: "graph")
    moved = tmp_path / "moved"
    for data, place in ((None, folders), (str(moved), moved)):
        folders.rename(place)
        assert SearchChoice(file.path, None, tmp_path / "out", data).graph(quiet=True)[1] == "graph"
    monkeypatch.setattr("evaluate.neighbors.neighbor_graph", lambda *_, **__: pytest.fail("searched first"))
    with pytest.raises(DataError, match=str(folders)):
        SearchChoice(file.path, None, tmp_path / "out", None).graph(quiet=True)


# Bug caught: more equal images than neighbors that are looked at, which fall into several groups or lose themselves.
def test_many_equal_images():
    features = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    features[:40] = features[0]
    graph = neighbor_graph(feature_file(features, np.zeros(60)), k=5)
    assert not (graph.indices == np.arange(60)[:, np.newaxis]).any()
    [group] = find_groups(graph, 0.999)
    assert group.rows == list(range(40))


# Bugs caught: no duplicates where all images are copies of one; scores in billions where most are.
def test_nothing_but_copies():
    features = np.full((60, 8), 2, np.float32)
    graph = neighbor_graph(feature_file(features, np.zeros(60)))
    [group] = find_groups(graph, near_threshold(graph))
    assert (len(group.rows), set(group.cosines)) == (60, {1})
    assert outlier_scores(graph).tolist() == [0] * 60
    features[40:] = np.random.default_rng(0).normal(size=(20, 8))
    scores = outlier_scores(neighbor_graph(feature_file(features, np.zeros(60))))
    assert scores[:40].max() < 0.01
    assert np.median(scores[40:]) == pytest.approx(1)


# Bug caught: plain cosines, which are all near 1 where features have a common mean.
def test_cosines_are_of_standardized_features():
    features = 100 + np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    features[1] = features[0] + 0.01
    graph = neighbor_graph(feature_file(features, np.zeros(500)))
    assert [group.rows for group in find_groups(graph, 0.9)] == [[0, 1]]


# Bugs caught: a default threshold that fits networks of one spread only; equal images that rounding keeps apart.
@pytest.mark.parametrize("spread", [1, 0.1, 0.03])
def test_the_default_threshold_fits_any_network(spread):
    draw = np.random.default_rng(0)
    features = draw.normal(size=(10, 64))[draw.integers(10, size=1000)] + spread * draw.normal(
        size=(1000, 64)
    )
    features[500:540] = features[:40] + 0.05 * spread * draw.normal(size=(40, 64))
    graph = neighbor_graph(feature_file(features.astype(np.float32), np.zeros(1000)))
    pairs = sorted(group.rows for group in find_groups(graph, near_threshold(graph)))
    assert pairs == [[row, 500 + row] for row in range(40)]
    equal = neighbor_graph(feature_file(np.tile(features[:1].astype(np.float32), (50, 1)) + 1, np.zeros(50)))
    assert near_threshold(equal) < 1


# Bug caught: scores by cosines, of which features of foreign images have usual ones.
def test_foreign_images_are_outliers():
    features = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    features[490:] = 3 * features[:10]
    scores = outlier_scores(neighbor_graph(feature_file(features, np.zeros(500))))
    assert set(np.argsort(-scores)[:10]) == set(range(490, 500))
    assert np.median(scores) == pytest.approx(1)


# Bugs caught: the most usual images instead of the least; scores of other images.
def test_outliers(tmp_path, file):
    scores = outlier_scores(neighbor_graph(file, k=3))
    found = write_outliers(tmp_path, file, scores, count=4)
    highest = -np.sort(-scores)[:4]
    assert [each["score"] for each in found] == pytest.approx(highest.tolist(), abs=1e-4)
    assert not {"exact.png", "near.png"} & {each["name"].split("/")[1] for each in found}
    assert [row["name"] for row in table(tmp_path / "outliers.csv")] == [each["name"] for each in found]
    assert len(re.findall("<figure>", (tmp_path / "index.html").read_text())) == 4
