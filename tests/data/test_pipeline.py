"""The input pipeline in tf.data: the same crops whatever the threads, workers and point of resumption."""

import numpy as np
import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import evaluation_view
from swav_tf.data.folders import ImageFolder
from swav_tf.data.loader import evaluation_batches, training_batches
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.sources import read_image
from swav_tf.recipe.pretraining import EvaluationView

tf = pytest.importorskip("tensorflow")

STEPS_PER_EPOCH, BATCH = 2, 8  # 16 of the folder's 24 images each epoch
TOTAL = 6


def batches(recipe, source, *, start=0, total=TOTAL, workers=1, worker=0, part=BATCH, bad=None):
    bad = BadImages(None, images=len(source), max_share=0.5) if bad is None else bad
    data = training_batches(
        recipe, source, steps_per_epoch=STEPS_PER_EPOCH, start_step=start, total_steps=total,
        workers=workers, worker=worker, replica_batch_size=part, bad_images=bad,
    )  # fmt: skip
    return [tuple(group.numpy() for group in batch) for batch in data]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def source(folder):
    return ImageFolder(folder)


@pytest.fixture
def whole(folder, recipe, source):
    return batches(recipe(folder), source)


def test_shapes_are_static(folder, recipe, source):
    # A shape with None in it: XLA recompiles, and Keras cannot build.
    bad = BadImages(None, images=24, max_share=0)
    data = training_batches(
        recipe(folder), source, steps_per_epoch=2, start_step=1, total_steps=6, workers=2, worker=1,
        replica_batch_size=2, bad_images=bad,
    )  # fmt: skip
    assert [(spec.shape.as_list(), spec.dtype) for spec in data.element_spec] == [
        ([2, 2, 32, 32, 3], tf.uint8),
        ([2, 3, 16, 16, 3], tf.uint8),
    ]
    assert data.cardinality() == 5 * 2


def test_each_place_holds_the_crops_of_its_image(folder, recipe, source, whole):
    # Crops of a row from different images; an order other than epoch_order's; an epoch's images used twice.
    recipe = recipe(folder)
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    for step, batch in enumerate(whole):
        epoch = step // STEPS_PER_EPOCH
        order = epoch_order(24, seed=31, epoch=epoch)
        for place in range(BATCH):
            index = int(order[step % STEPS_PER_EPOCH * BATCH + place])
            expected = multicrop(read_image(source, index), seed=31, epoch=epoch, index=index)
            for group, views in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(group[place], views)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_crops_do_not_depend_on_threads(folder, recipe, source, whole, threads):
    # A random generator shared by threads, or results in order of completion.
    assert_same(batches(recipe(folder, data={"threads": threads}), source), whole)


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_resumed_run_sees_what_the_uninterrupted_one_would(folder, recipe, source, whole, start):
    # A mid-epoch resumption that repeats the epoch's first images.
    assert_same(batches(recipe(folder), source, start=start), whole[start:])


def test_nothing_is_left_to_do_after_the_last_step(folder, recipe, source):
    assert batches(recipe(folder), source, start=TOTAL) == []


@pytest.mark.parametrize(("workers", "part"), [(2, 4), (2, 2), (4, 1)])
def test_the_workers_shares_together_are_the_batch(folder, recipe, source, whole, workers, part):
    # Workers that see the same images, or drop some.
    shares = [batches(recipe(folder), source, workers=workers, worker=w, part=part) for w in range(workers)]
    parts = BATCH // workers // part
    joined = [
        tuple(
            np.concatenate([shares[w][step * parts + i][group] for w in range(workers) for i in range(parts)])
            for group in range(2)
        )
        for step in range(TOTAL)
    ]
    assert_same(joined, whole)


def test_epochs_seeds_and_images_differ(folder, recipe, source, whole):
    # The same crops every epoch.
    rows = [row.tobytes() for batch in whole for row in batch[0]]
    assert len(set(rows)) == len(rows)
    other = batches(recipe(folder, seed=32), source, total=1)
    assert not np.array_equal(other[0][0], whole[0][0])


class TestBadImages:
    @pytest.fixture
    def spoiled(self, folder):
        """The folder with one truncated and one missing file, both met in the first epoch."""
        source = ImageFolder(folder)
        order = epoch_order(24, seed=31, epoch=0)
        truncated, missing = (folder / source.image_name(int(order[i])) for i in (5, 6))
        truncated.write_bytes(truncated.read_bytes()[:700])
        missing.unlink()
        return source, truncated.name, missing.name

    def test_the_next_good_image_takes_the_place(self, folder, recipe, whole, spoiled, tmp_path):
        # A batch that shrinks, so that workers disagree about the number of steps; a place filled with
        # gray; a stand-in whose crops repeat those of its own place.
        source, truncated, missing = spoiled
        tally = BadImages(tmp_path / "run" / "bad_images.txt", images=24, max_share=0.5)
        (tmp_path / "run").mkdir()
        recipe = recipe(folder)
        mended = batches(recipe, source, bad=tally)
        lines = tally.path.read_text().splitlines()
        assert {line.split("\t")[0] for line in lines} == {truncated, missing}
        assert len(lines) == 2
        assert next(line for line in lines if line.startswith(truncated)).endswith("marker is missing")

        index = int(epoch_order(24, seed=31, epoch=0)[7])
        image = read_image(source, index)
        multicrop = MultiCrop(recipe.crops, recipe.augment)
        for place, attempt in ((5, 2), (6, 1), (7, 0)):
            expected = multicrop(image, seed=31, epoch=0, index=index, attempt=attempt)
            np.testing.assert_array_equal(mended[0][0][place], expected[0])
        for place in (0, 1, 2, 3, 4, 7):
            np.testing.assert_array_equal(mended[0][0][place], whole[0][0][place])

    def test_stand_ins_do_not_depend_on_threads_or_resumption(self, folder, recipe, spoiled):
        # Stand-ins drawn from what other threads happened to find.
        source = spoiled[0]
        full = batches(recipe(folder), source)
        assert_same(batches(recipe(folder, data={"threads": 4}), source), full)
        assert_same(batches(recipe(folder), source, start=3), full[3:])

    def test_too_many_end_the_run_with_the_reason_kept(self, folder, recipe):
        # TensorFlow's UnknownError with a stack trace for a message is all that would be left.
        source = ImageFolder(folder)
        for i in range(24):
            (folder / f"{i:02d}.jpg").write_bytes(b"no image")
        tally = BadImages(None, images=24, max_share=0.1)
        with pytest.raises(tf.errors.OpError):
            batches(recipe(folder), source, bad=tally)
        assert "3 of 24 images cannot be read" in str(tally.fatal)
        assert tally.count == 3


@pytest.mark.parametrize(("workers", "part", "steps"), [(3, 1, 2), (1, 5, 2), (2, 8, 2), (1, 8, 4)])
def test_sizes_that_do_not_divide_are_refused(folder, recipe, source, workers, part, steps):
    # Images dropped or repeated without a word.
    with pytest.raises(ValueError, match=r"multiple of|at most once"):
        training_batches(
            recipe(folder), source, steps_per_epoch=steps, start_step=0, total_steps=4, workers=workers,
            worker=0, replica_batch_size=part, bad_images=BadImages(None, images=24, max_share=0),
        )  # fmt: skip


def test_evaluation_batches_keep_order_and_remainder(source):
    # A dropped last batch, or features against the labels of other images.
    view, indices = EvaluationView(resize=40, crop=32), [5, 3, 20, 0, 7]
    views = [batch.numpy() for batch in evaluation_batches(source, indices, view, 2, 2)]
    assert [len(batch) for batch in views] == [2, 2, 1]
    expected = np.stack([evaluation_view(read_image(source, i), view) for i in indices])
    np.testing.assert_array_equal(np.concatenate(views), expected)


def test_evaluation_names_an_image_that_cannot_be_read(folder, source):
    (folder / "03.jpg").write_bytes(b"no image")
    with pytest.raises(tf.errors.OpError, match=r"03\.jpg cannot be read"):
        list(evaluation_batches(source, [1, 2, 3], EvaluationView(resize=32, crop=32), 2, 1))
