"""The order of the images in an epoch, and how readers share it."""

import numpy as np
import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.data.folders import ClassFolders
from swav_tf.data.loader import training_batches
from swav_tf.data.order import epoch_order
from swav_tf.data.sharding import write_shards
from swav_tf.data.tfrecord import open_shards

pytest.importorskip("tensorflow")

BATCH, EPOCHS = 12, 3  # 12 is a multiple of 1, 2, 3 and 4


def test_every_epoch_is_a_different_permutation():
    # Images left out or repeated; one order for all epochs or seeds.
    orders = [epoch_order(1000, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in range(5)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    same = np.array([[np.mean(a == b) for a in orders] for b in orders])
    assert same[~np.eye(10, dtype=bool)].max() < 0.01


def test_an_order_is_a_function_of_seed_and_epoch():
    # A cached order that a caller changed, or one drawn from a stream.
    first = epoch_order(50, seed=3, epoch=7)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    expected = first.copy()
    for epoch in range(5):
        epoch_order(50, seed=3, epoch=epoch)
    np.testing.assert_array_equal(epoch_order(50, seed=3, epoch=7), expected)


def test_the_shuffle_is_global():
    # A shuffle buffer, or shuffled shards read one after the other: a batch of a source sorted by class has few classes.
    images, classes, batch = 128_000, 1000, 256
    orders = [epoch_order(images, seed=31, epoch=epoch) for epoch in (0, 1)]
    places = np.arange(images)
    for one, other in ((orders[0], places), (orders[1], places), (orders[0], orders[1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(images)  # five standard deviations
    distances = np.abs(np.diff(orders[0])) / images
    assert distances.mean() == pytest.approx(1 / 3, abs=0.005)  # of two uniform numbers
    distinct = [len(set(part)) for part in (orders[0] * classes // images).reshape(-1, batch)]
    assert np.mean(distinct) == pytest.approx(classes * (1 - (1 - 1 / classes) ** batch), rel=0.01)  # 226


def labels_by_step(recipe, source, readers):
    """Return the labels that all readers together see, (steps, BATCH)."""
    steps = len(source) // BATCH
    seen = []
    for reader in range(readers):
        batches = training_batches(
            recipe, source, steps_per_epoch=steps, start_step=0, total_steps=EPOCHS * steps, workers=readers,
            worker=reader, replica_batch_size=BATCH // readers, labeled=True,
            bad_images=BadImages(None, images=len(source), max_share=0),
        )  # fmt: skip
        seen.append(np.stack([batch[-1].numpy() for batch in batches]))
    return np.concatenate(seen, axis=1)


# Bugs caught: readers that take complete shards of unequal length, shares that overlap, a remainder that is never
# seen or makes one reader longer than the others, which hangs a synchronous step.
@pytest.mark.parametrize("images", [48, 53])
def test_each_image_once_an_epoch_for_any_number_of_readers(tmp_path, encoded, recipe, images):
    for i in range(images):  # a class for each image, so that its label identifies it
        (tmp_path / "images" / f"{i:03d}").mkdir(parents=True)
        (tmp_path / "images" / f"{i:03d}" / "x.png").write_bytes(
            encoded(np.full((8, 8, 3), i, np.uint8), "PNG")
        )
    write_shards(ClassFolders(tmp_path / "images"), tmp_path / "shards", shards=5)
    source, settings = open_shards(str(tmp_path / "shards")), recipe(tmp_path / "shards", batch_size=BATCH)
    settings = settings.model_copy(update={"crops": settings.crops[1:]})
    alone = labels_by_step(settings, source, 1)
    for readers in (2, 3, 4):
        np.testing.assert_array_equal(labels_by_step(settings, source, readers), alone)
    left_out = set()
    for epoch, seen in enumerate(alone.reshape(EPOCHS, -1)):
        # The last images of the epoch's order, less than a batch, are left out.
        order = epoch_order(images, seed=31, epoch=epoch)
        np.testing.assert_array_equal(seen, order[: images // BATCH * BATCH])
        left_out.add(frozenset(range(images)) - set(seen.tolist()))
    assert {len(rest) for rest in left_out} == {images % BATCH}
    assert len(left_out) == (EPOCHS if images % BATCH else 1)
