import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from evaluate.knn import knn_accuracies
from swav_tf import knn
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.models import feature_file


@pytest.fixture
def labeled():
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(6, 12))

    def some(n):
        labels = draw.integers(0, 6, n)
        return (centres[labels] + 1.5 * draw.normal(size=(n, 12))).astype(np.float32), labels

    return some(211), some(93)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(knn, "FEATURE_ROWS", 17)
    monkeypatch.setattr(knn, "QUERY_ROWS", 10)
    monkeypatch.setattr(knn, "SLAB_ROWS", 31)


# Bugs caught: a block's offset that is not added, a neighbor lost between two blocks or slabs, a later block that is
# left out, rows that are not normalized, an order that is not by distance.
@pytest.mark.parametrize("k", [1, 5, 16, 40, 211])
def test_neighbors_are_scikit_learns(labeled, small_blocks, k):
    (known, _), (asked, _) = labeled
    found = knn.find_neighbors(known * 3, asked * 0.1, k=k)
    distances, indices = (
        NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(known).kneighbors(asked)
    )
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.cosines, 1 - distances, atol=1e-5)


# Bugs caught: weights by another temperature or by distance, top-1 of other neighbors than the k nearest, classes
# without a single vote that count as fourth and fifth guess.
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracies_are_scikit_learns(labeled, small_blocks, temperature):
    (known, labels), (asked, truth) = labeled
    files = feature_file(known, labels), feature_file(asked, truth)
    accuracies = knn_accuracies(*files, neighbors=(3, 20, 100), temperature=temperature)
    for k, accuracy in accuracies.items():
        classifier = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
        ).fit(known, labels)
        assert accuracy.top1 == pytest.approx(classifier.score(asked, truth))
        chances = classifier.predict_proba(asked)
        five = np.argsort(-chances, axis=1, kind="stable")[:, :5]
        found = (five == truth[:, None]) & (np.take_along_axis(chances, five, axis=1) > 0)
        assert accuracy.top5 == pytest.approx(np.mean(found.any(axis=1)))
        assert accuracy.top1 == knn.knn_accuracy(known, labels, asked, truth, k=k, temperature=temperature)
    assert 0.4 < accuracies[20].top1 < 0.99


# Bug caught: features that are read into memory at once.
def test_memory_mapped_features_stay_on_disk(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (40_000, 128))  # 20 MiB
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    found = knn.find_neighbors(mapped, mapped[:50], k=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(50))
    assert peak < 8 * 2**20


# Bug caught: meaningless neighbors for k, widths or values that do not fit.
def test_invalid_searches_are_refused():
    rows = np.eye(4)
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to the number of features, 4"):
            knn.find_neighbors(rows, rows, k=k)
    with pytest.raises(ValueError, match="must match"):
        knn.find_neighbors(rows, rows[:, :3], k=1)
    with pytest.raises(ValueError, match=r"must be finite. Received: 1 row"):
        knn.find_neighbors(np.where(rows + np.arange(4) == 4, np.nan, rows), rows, k=1)


def same(**facts):
    """A feature file of four images and four classes."""
    return feature_file(np.eye(4), range(4), **facts)


def of_model(weights):
    return same(model={"weights_sha256": weights * 64})


PHOTOS = {"kind": "class_folders", "path": "x", "split": None, "images": 4, "names_sha256": "a"}


# Bugs caught: an accuracy of features that cannot be compared, or of labels with another meaning; a smaller k, silently.
@pytest.mark.parametrize(
    ("known", "asked", "error", "message"),
    [
        (same(), feature_file(np.ones((2, 3)), [0, 1]), UsageError, "the same width.*with 4, .*with 3"),
        (of_model("a"), of_model("b"), UsageError, "come from the same model"),
        (same(view={"crop": 1}), same(view={"crop": 2}), UsageError, "with the same view"),
        (feature_file(np.eye(4), [0, 1, -1, -1]), same(), DataError, "needs labels.*where 2 of 4"),
        (same(), feature_file(np.eye(4), [-1] * 4), DataError, "needs labels.*where 4 of 4"),
        (
            same(class_names=list("abcd")),
            same(class_names=list("abce")),
            UsageError,
            "1 classes that do not: e",
        ),
        (same(source=PHOTOS), same(source=PHOTOS), UsageError, "must differ"),
        (
            same(source=PHOTOS),
            same(source={**PHOTOS, "path": "./x/", "kind": "images"}),
            UsageError,
            "must differ",
        ),
        (
            same(source={**PHOTOS, "contents_sha256": "b"}),
            same(source={**PHOTOS, "path": "moved", "contents_sha256": "b"}),
            UsageError,
            "must differ",
        ),
        (one := same(), one, UsageError, "must differ"),
        (feature_file(np.full((4, 4), np.inf), range(4)), same(), DataError, "must be finite"),
        (
            feature_file(np.eye(2), [0, 1]),
            feature_file(np.eye(2), [0, 1]),
            UsageError,
            "vote, 2.*Received: 3",
        ),
    ],
)
def test_files_that_do_not_match_are_refused(known, asked, error, message):
    with pytest.raises(error, match=message), np.errstate(invalid="ignore"):
        knn_accuracies(known, asked, neighbors=(3,))


# Bugs caught: classes of two files compared by position, an accuracy of files without a common class.
def test_classes_of_two_files_are_matched_by_name(labeled, caplog):
    (known, labels), (asked, truth) = labeled
    names = [f"n{number}" for number in range(6)]
    turned = feature_file(asked, 5 - truth, class_names=names[::-1])
    expected = knn_accuracies(feature_file(known, labels), feature_file(asked, truth), neighbors=(5,))
    assert knn_accuracies(feature_file(known, labels, class_names=names), turned, neighbors=(5,)) == expected
    with pytest.raises(DataError, match="without a common label"):
        knn_accuracies(feature_file(known, labels), feature_file(asked, truth + 6), neighbors=(5,))
    knn_accuracies(feature_file(known, labels), feature_file(asked, 2 * truth), neighbors=(5,))
    assert "they count as wrong" in caplog.text
