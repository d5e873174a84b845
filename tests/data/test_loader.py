"""The tf.data pipelines: the same crops whatever the threads, workers and point of resumption."""

from types import SimpleNamespace

import numpy as np
import pytest

from swav_tf.data import loader
from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import evaluation_view
from swav_tf.data.folders import ImageFolder
from swav_tf.data.loader import evaluation_batches, training_batches
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.sources import read_image
from swav_tf.recipe.data import EvaluationView

tf = pytest.importorskip("tensorflow")

STEPS_PER_EPOCH, BATCH = 2, 8  # 16 of the folder's 24 images each epoch
TOTAL = 6


def data_set(recipe, source, *, start=0, total=TOTAL, workers=1, worker=0, part=BATCH, bad=None):
    return training_batches(
        recipe, source, steps_per_epoch=STEPS_PER_EPOCH, start_step=start, total_steps=total,
        workers=workers, worker=worker, replica_batch_size=part,
        bad_images=bad or BadImages(None, images=len(source), max_share=0.5),
    )  # fmt: skip


def batches(*arguments, **settings):
    return [tuple(group.numpy() for group in batch) for batch in data_set(*arguments, **settings)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def source(folder):
    return ImageFolder(folder)


@pytest.fixture
def uninterrupted(folder, recipe, source):
    return batches(recipe(folder), source)


def test_shapes_are_static(folder, recipe, source):
    # A shape with None in it: XLA recompiles, and Keras cannot build.
    data = data_set(recipe(folder), source, start=1, workers=2, worker=1, part=2)
    assert [(spec.shape.as_list(), spec.dtype) for spec in data.element_spec] == [
        ([2, 2, 32, 32, 3], tf.uint8),
        ([2, 3, 16, 16, 3], tf.uint8),
    ]
    assert data.cardinality() == 5 * 2
    # Its thread can keep an iterator from ending for up to a minute, and with it a worker that is done.
    assert data.options().autotune.enabled is False


# Bug caught: parts of a batch that hold other images with another number of workers, or an undivided batch that changes.
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_each_part_holds_the_same_images_on_any_number_of_workers(
    folder, recipe, source, uninterrupted, accumulation
):
    settings = recipe(folder)
    train = settings.train.model_copy(update={"accumulation_steps": accumulation})
    settings = settings.model_copy(update={"train": train})
    size = BATCH // accumulation // 2
    shares = [batches(settings, source, workers=2, worker=w, part=size) for w in range(2)]
    joined = [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in zip(*shares, strict=True)]
    expected = [
        tuple(group[first : first + 2 * size] for group in batch)
        for batch in uninterrupted
        for first in range(0, BATCH, 2 * size)
    ]
    assert_same(joined, expected)


# Bugs caught: crops of a row from different images; an order other than epoch_order's; an epoch's images used twice;
# the same crops every epoch or for every seed.
def test_each_place_holds_the_crops_of_its_image(folder, recipe, source, uninterrupted):
    settings = recipe(folder)
    multicrop = MultiCrop(settings.crops, settings.augment)
    for step, batch in enumerate(uninterrupted):
        epoch = step // STEPS_PER_EPOCH
        order = epoch_order(24, seed=31, epoch=epoch)
        for place in range(BATCH):
            index = int(order[step % STEPS_PER_EPOCH * BATCH + place])
            expected = multicrop(read_image(source, index), seed=31, epoch=epoch, index=index)
            for group, views in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(group[place], views)
    rows = [row.tobytes() for batch in uninterrupted for row in batch[0]]
    assert len(set(rows)) == len(rows)
    other = batches(recipe(folder, seed=32), source, total=1)
    assert not np.array_equal(other[0][0], uninterrupted[0][0])


# Bugs caught: a random generator shared by threads, results in order of completion; a mid-epoch resumption that
# repeats the epoch's first images.
@pytest.mark.parametrize(("threads", "start"), [(1, 0), (2, 1), (5, 2), (0, 5), (0, TOTAL)])
def test_crops_do_not_depend_on_threads_or_resumption(folder, recipe, source, uninterrupted, threads, start):
    found = batches(recipe(folder, data={"threads": threads}), source, start=start)
    assert_same(found, uninterrupted[start:])


# Bug caught: workers that see the same images, or drop some.
@pytest.mark.parametrize(("workers", "part"), [(2, 2), (4, 1)])
def test_the_workers_shares_together_are_the_batch(folder, recipe, source, uninterrupted, workers, part):
    shares = [batches(recipe(folder), source, workers=workers, worker=w, part=part) for w in range(workers)]
    parts = BATCH // workers // part
    joined = [
        tuple(
            np.concatenate([shares[w][step * parts + i][group] for w in range(workers) for i in range(parts)])
            for group in range(2)
        )
        for step in range(TOTAL)
    ]
    assert_same(joined, uninterrupted)


# Bugs caught: a batch that shrinks, so that workers disagree about the number of steps; a gray place; a replacement
# whose crops repeat those of its own place, or that depends on what other threads happened to find.
def test_the_next_readable_image_replaces_an_unreadable_one(
    folder, recipe, source, uninterrupted, tmp_path_factory
):
    order = epoch_order(24, seed=31, epoch=0)
    truncated, missing = (folder / source.image_name(int(order[i])) for i in (5, 6))
    truncated.write_bytes(truncated.read_bytes()[:700])
    missing.unlink()
    settings = recipe(folder)
    tally = BadImages(tmp_path_factory.mktemp("run") / "bad_images.txt", images=24, max_share=0.5)
    found = batches(settings, source, bad=tally)
    lines = dict(line.split("\t") for line in tally.path.read_text().splitlines())
    assert lines.keys() == {truncated.name, missing.name}
    assert lines[truncated.name].endswith("marker is missing")

    index = int(order[7])
    multicrop = MultiCrop(settings.crops, settings.augment)
    for place, attempt in ((5, 2), (6, 1), (7, 0)):
        expected = multicrop(read_image(source, index), seed=31, epoch=0, index=index, attempt=attempt)
        np.testing.assert_array_equal(found[0][0][place], expected[0])
    for place in (0, 1, 2, 3, 4, 7):
        np.testing.assert_array_equal(found[0][0][place], uninterrupted[0][0][place])
    assert_same(batches(recipe(folder, data={"threads": 4}), source, start=3), found[3:])


def test_too_many_bad_images_end_the_run(folder, recipe, source):
    # TensorFlow's UnknownError with a stack trace for a message, in which training finds the reason.
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"no image")
    tally = BadImages(None, images=24, max_share=0.1)
    with pytest.raises(tf.errors.OpError, match=r"DataError: \d+ of 24 images cannot be read"):
        batches(recipe(folder), source, bad=tally)


# Bugs caught: a dropped last batch, or features with the labels of other images; an unreadable image left out.
def test_evaluation_batches_keep_order_and_remainder(folder, source):
    view, indices = EvaluationView(resize=40, crop=32), [5, -1, 20, 0, 7]
    views = [batch.numpy() for batch in evaluation_batches(source, indices, view, 2, 2)]
    assert [len(batch) for batch in views] == [2, 2, 1]
    black = np.zeros((32, 32, 3), np.uint8)
    expected = [black if i < 0 else evaluation_view(read_image(source, i), view) for i in indices]
    np.testing.assert_array_equal(np.concatenate(views), np.stack(expected))
    (folder / "03.jpg").write_bytes(b"no image")
    with pytest.raises(tf.errors.OpError, match=r"03\.jpg cannot be read"):
        list(evaluation_batches(source, [1, 2, 3], view, 2, 1))


# Bug caught: a wait for each validation of a run, which ended 10 s later after 100 of them.
def test_many_data_sets_end_together(monkeypatch):
    waits, open_before = [], len(loader._open_calls)
    monkeypatch.setattr(loader, "time", SimpleNamespace(sleep=waits.append))  # other threads sleep as they do
    with loader.ended_after():
        made = [loader.PythonCalls() for _ in range(20)]
    assert len(waits) == 1
    assert all(calls._ended for calls in made)
    assert len(loader._open_calls) == open_before
