"""Shards shared out to 1, 2, 3 and 4 readers: no image twice in an epoch, none lost, whatever the number."""

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


@pytest.fixture(scope="module")
def shards(tmp_path_factory, encoded):
    """shards(images) -> a folder of five shards, each image a class of its own, so that its label tells it."""

    def make(images):
        root = tmp_path_factory.mktemp("shards")
        for i in range(images):
            folder = root / "images" / f"{i:03d}"
            folder.mkdir(parents=True)
            (folder / "x.png").write_bytes(encoded(np.full((8, 8, 3), i, np.uint8), "PNG"))
        write_shards(ClassFolders(root / "images"), root / "shards", shards=5)
        return root / "shards"

    return make


def labels_by_step(recipe, source, readers):
    """What all readers together see, (steps, BATCH), each reader's share behind that of the one before."""
    seen = []
    for reader in range(readers):
        batches = training_batches(
            recipe, source, steps_per_epoch=len(source) // BATCH, start_step=0,
            total_steps=EPOCHS * (len(source) // BATCH), workers=readers, worker=reader,
            replica_batch_size=BATCH // readers, bad_images=BadImages(None, images=len(source), max_share=0),
            labelled=True,
        )  # fmt: skip
        seen.append(np.stack([batch[-1].numpy() for batch in batches]))
    return np.concatenate(seen, axis=1)


# Bugs caught: readers that take whole shards of unequal length, shares that overlap, a remainder that is lost for
# good or makes one reader longer than the others, which hangs a synchronous step.
@pytest.mark.parametrize("images", [48, 53])
def test_each_image_once_an_epoch_in_every_topology(shards, recipe, images):
    path = shards(images)
    source, settings = open_shards(str(path)), recipe(path, batch_size=BATCH)
    settings = settings.model_copy(update={"crops": settings.crops[1:]})
    alone = labels_by_step(settings, source, 1)
    for readers in (2, 3, 4):
        np.testing.assert_array_equal(labels_by_step(settings, source, readers), alone)
    epochs = alone.reshape(EPOCHS, -1)
    left_out = []
    for epoch, seen in enumerate(epochs):
        # The remainder, less than a batch, is left out: others each epoch, the last ones of its order.
        order = epoch_order(images, seed=31, epoch=epoch)
        np.testing.assert_array_equal(seen, order[: images // BATCH * BATCH])
        assert len(set(seen)) == images // BATCH * BATCH
        left_out.append(frozenset(range(images)) - set(seen.tolist()))
    assert {len(rest) for rest in left_out} == {images % BATCH}
    if images % BATCH:
        assert len(set(left_out)) == EPOCHS
