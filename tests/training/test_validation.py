from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.data.decode import evaluation_view
from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.training.cluster import Topology
from swav_tf.training.position import Position
from swav_tf.training.validation import Counts, Validate, Validation, counts_of, tally
from tests.classifiers import bare_classifier, tiny_classifier_recipe

IMAGES = 23  # divides by nothing that follows


class FewImages:
    """Random images of different sizes."""

    class_names = ("a", "b", "c", "d", "e", "f", "g")

    def __init__(self):
        draw = np.random.default_rng(3)
        self.images = [draw.integers(0, 256, (16 + i, 20, 3), dtype=np.uint8) for i in range(IMAGES)]
        self.labels = draw.integers(0, 7, IMAGES)

    def __len__(self):
        return IMAGES

    def read(self, index):
        return self.images[index]

    def label(self, index):
        return int(self.labels[index])

    def image_name(self, index):
        return str(index)


def make(source, batch_size, team):
    recipe = tiny_classifier_recipe(ProbeRecipe)
    model = bare_classifier(recipe, class_count=7)
    # Weights that give different logits, the same in every model.
    draw = np.random.default_rng(5)
    for variable in model.weights:
        variable.assign(draw.normal(size=variable.shape))
    return (
        recipe,
        model,
        Validation(model, source, source.labels, recipe.data, replica_batch_size=batch_size, team=team),
    )


def one_by_one(source, recipe, model):
    """Confusion matrix and top-5 hits by plain NumPy, image by image."""
    confusion, top5 = np.zeros((7, 7), int), np.zeros(7, int)
    for image, label in zip(source.images, source.labels, strict=True):
        view = evaluation_view(image, recipe.data.evaluation)
        logits = model(tf.constant(view[None]), training=False).numpy()[0]
        order = np.argsort(-logits, kind="stable")
        confusion[label, order[0]] += 1
        top5[label] += label in order[:5]
    return confusion, top5


# Bugs caught: an image that is counted twice or not at all, padding that counts, replicas that count alone, a
# last batch that is dropped, sums that the next validation begins with.
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 23, 64])
def test_each_image_counts_once(replicas, batch_size, mirrored):
    source = FewImages()
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    team = Topology("any", workers=1, worker=0, replicas=replicas, devices="CPU")
    with strategy.scope():
        recipe, model, validation = make(source, batch_size, team)
    confusion, top5 = one_by_one(source, recipe, model)
    for _ in range(2):
        counts = validation.measure()
        np.testing.assert_array_equal(counts.confusion, confusion)
        np.testing.assert_array_equal(counts.top5, top5)
        assert counts.images.sum() == IMAGES
        assert counts.as_dict()["top1"] == np.trace(confusion) / IMAGES
        assert counts.as_dict()["top5"] == top5.sum() / IMAGES


# Bug caught: workers whose shares overlap, leave out images, or have unequal numbers of batches.
@pytest.mark.parametrize("workers", [2, 3])
def test_shares_of_workers_are_all_images_once(workers):
    source = FewImages()
    shares = [
        make(source, 4, Topology("any", workers=workers, worker=w, replicas=workers, devices="CPU"))[2]
        for w in range(workers)
    ]
    assert len({len(share.indices) for share in shares}) == 1
    every = np.concatenate([share.indices for share in shares])
    assert sorted(every[every >= 0]) == list(range(IMAGES))
    labels = np.concatenate([share.labels for share in shares])
    np.testing.assert_array_equal(labels[every >= 0], source.labels[every[every >= 0]])
    assert set(labels[every < 0]) == {-1}


# Bugs caught: equal logits that all count as right, a row of NaN that does, padding that does.
def test_ties_padding_and_nan():
    logits = np.zeros((4, 8), np.float32)  # all equal: class 0 wins, classes 0 to 4 are the first five
    counts = counts_of([v.numpy() for v in tally(tf.constant(logits), tf.constant([0, 4, 5, -1], tf.int64))])
    assert counts.images.tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    assert counts.right.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert counts.top5.tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert counts.loss == pytest.approx(np.log(8))
    logits[1] = np.nan
    with pytest.raises(SwavError, match="NaN or infinity for 1 validation images"):
        counts_of([v.numpy() for v in tally(tf.constant(logits), tf.constant([0, 4, 5, -1], tf.int64))])


# Bug caught: a best epoch that was measured on other images than those of a later one.
def test_the_best_epoch_is_one_of_the_same_images(logged):
    position, metrics = Position(1, 9), SimpleNamespace(write=lambda kind, values: None)

    def validate(epoch, images, right):
        counts = Counts(np.array([[right, 10 - right], [0, 0]]), np.array([10, 0]), loss=1.0)
        measured = SimpleNamespace(measure=lambda: counts)
        callback = Validate(measured, position, metrics, every_epochs=1, images=images)
        position.step = epoch
        callback.on_train_batch_end(0, {})
        return position.best_step

    assert [validate(1, "a", 9), validate(2, "a", 3)] == [1, 1]
    assert not logged
    assert [validate(3, "b", 6), validate(4, "b", 5)] == [3, 3]
    assert [level for level, _ in logged] == ["WARNING"]
    del position.validation["images"]  # as an earlier version wrote it
    assert validate(5, "b", 7) == 5
