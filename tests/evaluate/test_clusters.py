import base64
import csv
import html
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from evaluate.cluster_page import thumbnail, write_cluster_sheets
from evaluate.clusters import Clusters, assign_images, summary, usage_table, write_tables
from evaluate.images import ImageSet, UnreadableImages, stack_views, view_images
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Data
from tests.evaluate.models import PROTOTYPES, NumpyRunner, class_folders, make_class_folders


def assign(images, folder, runner=None, **settings):
    unreadable = UnreadableImages(len(images.source), 0.1, folder / "bad.csv")
    return assign_images(runner or NumpyRunner(), images, unreadable=unreadable, **settings)


# Bugs caught: nearest images of one batch only, of another prototype, or out of order; rows confused with numbers
# in the source where an image is unreadable.
@pytest.mark.parametrize(("batch_size", "near"), [(3, 5), (100, 5), (4, 14), (100, 14)])
def test_assignment_is_by_all_scores(tmp_path, folders, batch_size, near):
    (folders / "cat" / "04.png").write_bytes(b"")
    images = class_folders(folders)
    clusters = assign(images, tmp_path, images_of_each=near, batch_size=batch_size)
    readable = [i for i in range(20) if i != 4]
    views = stack_views(list(view_images(images.source, readable, NumpyRunner.input_view)))
    scores = NumpyRunner().run(views)["scores"]
    assert clusters.index.tolist() == readable
    np.testing.assert_array_equal(clusters.prototypes, scores.argmax(axis=1))
    np.testing.assert_allclose(clusters.scores, scores.max(axis=1), rtol=1e-5)
    assert clusters.nearest.shape == (PROTOTYPES, near)
    np.testing.assert_array_equal(clusters.nearest, np.argsort(-scores, axis=0)[:near].T)
    np.testing.assert_allclose(
        clusters.nearest_scores, -np.sort(-scores, axis=0)[:near].T, rtol=1e-4, atol=1e-5
    )


class ManyImages:
    """800 images in memory."""

    class_names = ()
    pixels = np.random.default_rng(3).integers(0, 256, (800, 8, 8, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def read(self, index):
        return self.pixels[index]

    def label(self, index):
        return -1

    def image_name(self, index):
        return str(index)


# Bug caught: the nearest images of many in the order that a partition leaves them in, which is by chance right for few.
def test_the_nearest_of_many_are_in_order(tmp_path):
    images = ImageSet(ManyImages(), Data(kind="images"))
    clusters = assign(images, tmp_path, images_of_each=600, batch_size=800)
    views = stack_views(list(view_images(images.source, range(800), NumpyRunner.input_view)))
    scores = NumpyRunner().run(views)["scores"]
    nearest = np.take_along_axis(scores, clusters.nearest.T, axis=0)
    np.testing.assert_allclose(nearest, -np.sort(-scores, axis=0)[:600], rtol=1e-4, atol=1e-5)


def some_clusters(labels):
    prototypes = np.array([2, 2, 2, 2, 0, 0, 3, 3])
    return Clusters(
        index=np.arange(8),
        labels=np.array(labels),
        prototypes=prototypes,
        scores=np.linspace(0.1, 0.8, 8),
        nearest=np.zeros((4, 1), np.int64),
        nearest_scores=np.zeros((4, 1)),
        class_names=("cat", "dog"),
    )


# Bugs caught: an unused prototype that is counted, entropy in bits, purity by the whole set's classes.
def test_figures():
    figures = summary(some_clusters([0, 0, 0, 1, 1, 1, 0, 1]))
    assert (figures["images"], figures["prototypes"], figures["prototypes_used"]) == (8, 4, 3)
    assert figures["effective_prototypes"] == round(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), 2)
    assert figures["largest_share"] == 0.5
    assert figures["purity"] == pytest.approx(6 / 8)
    assert "purity" not in summary(some_clusters([0, 0, 0, 1, 1, 1, 0, -1]))


# Bugs caught: prototypes out of the order of usage, an unused one left out or with a mean of nothing.
def test_usage_table():
    table = usage_table(some_clusters([0, 0, 0, 1, 1, 1, 0, 1]))
    assert [row["prototype"] for row in table] == [2, 0, 3, 1]
    assert table[0]["mean_score"] == pytest.approx(0.25)
    assert (table[0]["images"], table[0]["share"], table[0]["top_class"]) == (4, 0.5, "cat")
    assert table[0]["top_class_share"] == 0.75
    assert table[3] == {
        "prototype": 1,
        "images": 0,
        "share": 0.0,
        "mean_score": None,
        "top_class": None,
        "top_class_share": None,
    }


# Bugs caught: a page that asks the network for anything, a file name that is run as HTML, tables that do not add up.
def test_pages_and_tables(tmp_path):
    images = class_folders(
        make_class_folders(tmp_path / "images", classes=("<script>alert(1)<", "b"), each=4)
    )
    clusters = assign(images, tmp_path, images_of_each=3)
    write_tables(clusters, images, tmp_path)
    write_cluster_sheets(
        tmp_path, clusters, images, model=NumpyRunner().facts, view=NumpyRunner.input_view, prototypes=2
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert page.count("<article>") == 2
    assert page.count("<figure>") == 6
    assert {address.partition(":")[0] for address in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data"}
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.std() > 20
    with (tmp_path / "assignments.csv").open(encoding="utf-8", newline="") as file:
        assignments = list(csv.DictReader(file))
    with (tmp_path / "usage.csv").open(encoding="utf-8", newline="") as file:
        usage = list(csv.DictReader(file))
    assert [line["name"] for line in assignments] == [images.source.image_name(i) for i in range(8)]
    for row in usage:
        assert int(row["images"]) == sum(line["prototype"] == row["prototype"] for line in assignments)
    assert len(usage) == PROTOTYPES


# Bug caught: pictures of other images than those that are named, where one before them is unreadable.
def test_pictures_are_of_the_images_named(tmp_path, folders):
    (folders / "cat" / "00.png").write_bytes(b"")
    images, runner = class_folders(folders), NumpyRunner()
    clusters = assign(images, tmp_path, images_of_each=4)
    write_cluster_sheets(tmp_path, clusters, images, model=runner.facts, view=runner.input_view, prototypes=9)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r'src="data:image/[a-z]+;base64,([^"]*)" alt="(.*?), class', page)
    numbers = {html.escape(images.source.image_name(i)): i for i in range(20)}
    assert len(figures) >= 8
    for encoded, name in figures:
        picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        expected = thumbnail(images.source, numbers[name], runner.input_view, 96)
        assert np.abs(np.asarray(picture, float) - np.asarray(expected, float)).mean() < 8


# Bug caught: a traceback for a model without prototypes.
def test_a_model_without_prototypes(tmp_path, folders):
    runner = NumpyRunner()
    run = runner.run
    runner.run = lambda images: {"features": run(images)["features"]}
    with pytest.raises(
        UsageError, match=r"need a model with prototypes. Received: model, which gives features"
    ):
        assign(class_folders(folders), tmp_path, runner)
