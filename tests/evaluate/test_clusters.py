import csv
import math

import numpy as np
import pytest

from evaluate.clusters import Clusters, assign_images, summary, usage_table, write_tables
from evaluate.images import ImageSet
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.data import Data
from tests.evaluate.models import PROTOTYPES, NumpyBackend, class_folders, outputs_of


def assign(images, folder, model=None, **settings):
    model = model or NumpyBackend()
    return assign_images(model, images, unreadable_list=folder / "bad.csv", max_bad_share=0.1, **settings)


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


# Bugs caught: nearest images of one batch only, of another prototype, or in the order that a partition leaves; rows
# taken for numbers in the source when an image is unreadable.
@pytest.mark.parametrize(("batch_size", "near"), [(3, 5), (100, 5), (4, 14), (800, 600)])
def test_assignment_is_by_all_scores(tmp_path, folders, batch_size, near):
    if near == 600:
        images, readable = ImageSet(ManyImages(), Data(kind="images")), list(range(800))
    else:
        (folders / "cat" / "04.png").write_bytes(b"x")
        images, readable = class_folders(folders), [i for i in range(20) if i != 4]
    clusters = assign(images, tmp_path, images_of_each=near, batch_size=batch_size)
    scores = outputs_of(images.source, readable)["scores"]
    assert (clusters.index.tolist(), clusters.unreadable) == (readable, len(images.source) - len(readable))
    np.testing.assert_array_equal(clusters.prototypes, scores.argmax(axis=1))
    np.testing.assert_allclose(clusters.scores, scores.max(axis=1), rtol=1e-5)
    best = -np.sort(-scores, axis=0)[:near]
    assert clusters.nearest.shape == (PROTOTYPES, near)
    found = np.take_along_axis(scores, clusters.nearest.T, axis=0)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clusters.nearest_scores, best.T, rtol=1e-4, atol=1e-5)


def some_clusters(labels):
    return Clusters(
        index=np.arange(8),
        labels=np.array(labels),
        prototypes=np.array([2, 2, 2, 2, 0, 0, 3, 3]),
        scores=np.linspace(0.1, 0.8, 8),
        nearest=np.zeros((4, 1), np.int64),
        nearest_scores=np.zeros((4, 1)),
        class_names=("cat", "dog"),
    )


# Bugs caught: an unused prototype that is counted, entropy in bits, purity by the classes of the complete set.
def test_figures():
    figures = summary(some_clusters([0, 0, 0, 1, 1, 1, 0, 1]))
    assert (figures["images"], figures["prototypes"], figures["prototypes_used"]) == (8, 4, 3)
    assert figures["effective_prototypes"] == round(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), 2)
    assert figures["largest_share"] == 0.5
    assert figures["purity"] == pytest.approx(6 / 8)
    assert "purity" not in summary(some_clusters([0, 0, 0, 1, 1, 1, 0, -1]))


# Bugs caught: prototypes not in the order of usage, an unused one left out or with a mean of nothing.
def test_usage_table():
    table = usage_table(some_clusters([0, 0, 0, 1, 1, 1, 0, 1]))
    assert [row["prototype"] for row in table] == [2, 0, 3, 1]
    assert table[0]["mean_score"] == pytest.approx(0.25)
    assert (table[0]["images"], table[0]["share"], table[0]["top_class"]) == (4, 0.5, "cat")
    assert table[0]["top_class_share"] == 0.75
    unused = {"mean_score": None, "top_class": None, "top_class_share": None}
    assert table[3] == {"prototype": 1, "images": 0, "share": 0.0, **unused}


# Bug caught: tables that do not add up.
def test_tables(tmp_path, folders):
    images = class_folders(folders)
    report = write_tables(tmp_path, assign(images, tmp_path), images, NumpyBackend().facts)
    with (tmp_path / "assignments.csv").open(encoding="utf-8", newline="") as file:
        assignments = list(csv.DictReader(file))
    with (tmp_path / "usage.csv").open(encoding="utf-8", newline="") as file:
        usage = list(csv.DictReader(file))
    assert [line["name"] for line in assignments] == [images.source.image_name(i) for i in range(20)]
    for row in usage:
        assert int(row["images"]) == sum(line["prototype"] == row["prototype"] for line in assignments)
    assert len(usage) == len(report["usage"]) == PROTOTYPES
    assert report.keys() >= {"images", "purity", "unreadable", "model"}


def test_a_model_without_prototypes(tmp_path, folders):
    model = NumpyBackend()
    model.outputs = ("features",)
    with pytest.raises(UsageError, match=r"with prototypes. Received: model with the outputs features"):
        assign(class_folders(folders), tmp_path, model)
