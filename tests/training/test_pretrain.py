import json
import math

import cv2
import keras
import numpy as np
import pytest

from swav_tf.plumbing.errors import DataError, RecipeError, UsageError
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.build import load_swav
from swav_tf.training.checkpointing import Diverged, StoppedBySignal
from swav_tf.training.pretrain import pretrain
from tests.swav_models import tiny_recipe
from tests.training.runs import StopAfter, assert_same_bits, assert_same_run, lines, newest

LARGE = {"train__batch_size": 128}  # 11 steps an epoch


# Bugs caught: a file of the run folder that is missing, an epoch with a step too many, a summary of other numbers.
def test_a_run_leaves_a_whole_folder(tmp_path):
    recipe = tiny_recipe(**LARGE, data__validation_split="test", monitor__knn_every_epochs=2)
    result = pretrain(recipe, run_dir=tmp_path, quiet=True)
    assert {p.name for p in tmp_path.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == result.summary
    steps, epochs = lines(tmp_path, "step"), lines(tmp_path, "epoch")
    assert [line["step"] for line in steps] == list(range(1, 23))
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert epochs[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in steps[:11]]))
    assert result.summary["loss_first"] == steps[0]["loss"]
    assert result.summary["loss_last"] == epochs[1]["loss"]
    assert result.summary["ln_k"] == pytest.approx(math.log(12))
    [knn] = lines(tmp_path, "knn")
    assert 0.2 < knn["knn_top1"] == result.summary["knn_top1"] <= 1

    # A run that has ended is only looked at again.
    again = pretrain(recipe, run_dir=tmp_path, quiet=True)
    assert again.summary == result.summary == json.loads((tmp_path / "summary.json").read_text())

    # A run folder gives its model back.
    model, loaded = load_swav(tmp_path)
    assert loaded == recipe
    for one, other in zip(result.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())

    with pytest.raises(UsageError, match=r"method.epsilon: was 0.05, now 0.04"):
        pretrain(tiny_recipe(**LARGE, method__epsilon=0.04), run_dir=tmp_path, quiet=True)
    fresh = pretrain(
        tiny_recipe(train__batch_size=700, train__epochs=1), run_dir=tmp_path, quiet=True, fresh=True
    )
    assert fresh.summary["resumed_from_step"] is None
    assert (tmp_path / "previous-1" / "summary.json").exists()


# Bug caught: a run that goes on with other images, in another order and with another schedule, without a word.
def test_a_run_goes_on_with_its_own_images_only(tmp_path):
    write_images(tmp_path / "images", 40, bad=set())
    recipe = tiny_recipe(data__kind="images", data__path=str(tmp_path / "images"))
    with pytest.raises(StoppedBySignal):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True, callbacks=[StopAfter(2)])
    (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "other.png")
    with pytest.raises(UsageError, match="40 images, now there are 40, of other names"):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True)
    (tmp_path / "images" / "other.png").unlink()
    with pytest.raises(UsageError, match="40 images, now there are 39"):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True)


# Bugs caught: the recipe's copy in the folder as the only guard: without it any settings would go on; a copy that
# is written of settings that are then refused.
def test_a_checkpoint_knows_its_recipe(tmp_path):
    with pytest.raises(StoppedBySignal):
        pretrain(tiny_recipe(**LARGE), run_dir=tmp_path, quiet=True, callbacks=[StopAfter(2)])
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"method.epsilon: was 0.05, now 0.04"):
        pretrain(tiny_recipe(**LARGE, method__epsilon=0.04), run_dir=tmp_path, quiet=True)
    assert not (tmp_path / "config.yaml").exists()


# Bug caught: state of a batch in parts that a checkpoint forgets.
def test_a_stopped_run_in_parts_equals_an_uninterrupted_one(tmp_path):
    write_images(tmp_path / "images", 176, bad=set())  # 11 steps an epoch
    recipe = tiny_recipe(
        data__kind="images",
        data__path=str(tmp_path / "images"),
        train__batch_size=16,
        train__accumulation_steps=2,
        method__queue={"length": 32},
    )
    pretrain(recipe, run_dir=tmp_path / "whole", quiet=True)
    with pytest.raises(StoppedBySignal, match="after step 7"):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True, callbacks=[StopAfter(6)])
    pretrain(recipe, run_dir=tmp_path / "run", quiet=True)
    assert_same_bits(newest(tmp_path / "whole"), newest(tmp_path / "run"))


def on_replicas(number):
    return tiny_recipe(
        **LARGE,
        method__queue={"length": 256},
        train__logical_cpus=number,
        train__strategy="mirrored" if number == 2 else "one_device",
        optimizer__peak_learning_rate=0.2,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The last checkpoint of two replicas that nobody stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pretrain(on_replicas(2), run_dir=folder, quiet=True)
    return newest(folder)


# Bugs caught: replicas that the recipe asks for and nobody makes; a queue of one replica only in the checkpoint,
# or given back to the wrong replica; a run that is bound to its number of replicas, or can only be given fewer.
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_a_run_stopped_on_some_replicas_and_gone_on_with_on_others_equals_an_undisturbed_one(
    tmp_path, undisturbed, before, after
):
    with pytest.raises(StoppedBySignal, match="after step 7"):
        pretrain(on_replicas(before), run_dir=tmp_path, quiet=True, callbacks=[StopAfter(6)])
    stopped = newest(tmp_path)
    assert stopped.arrays["queue/projections"].shape == (2, 256, 16)
    np.testing.assert_allclose(np.linalg.norm(stopped.arrays["queue/projections"], axis=-1), 1, rtol=1e-5)
    result = pretrain(on_replicas(after), run_dir=tmp_path, quiet=True)
    assert (result.summary["resumed_from_step"], result.summary["replicas"]) == (7, after)
    assert newest(tmp_path).step == 22
    assert_same_run(undisturbed, newest(tmp_path))


# Bug caught: a callback that ends the run, as early stopping does, and a run that begins again for ever.
def test_a_callback_can_end_the_run(tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 4

    result = pretrain(tiny_recipe(**LARGE), run_dir=tmp_path, quiet=True, callbacks=[Enough()])
    assert result.summary["steps"] == newest(tmp_path).step == 5


class Poison(keras.callbacks.Callback):
    """From a step on, a weight that makes everything NaN."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.head.get_layer("projection").bias.assign([np.nan] * 16)


# Bugs caught: NaN that trains on in silence, an error without step or checkpoint, a poisoned checkpoint.
def test_a_run_that_stays_non_finite_stops_with_a_named_error(tmp_path):
    recipe = tiny_recipe(**LARGE, train__max_non_finite_steps=3, checkpoint__keep_every_epochs=1)
    with pytest.raises(Diverged, match=r"3 steps in a row, up to step 16[\s\S]*step-000000011"):
        pretrain(recipe, run_dir=tmp_path, quiet=True, callbacks=[Poison(13)])
    checkpoint = CheckpointStore(tmp_path / "checkpoints", kind="pretrain").newest()[0]
    assert checkpoint.step == 11
    assert all(np.all(np.isfinite(array)) for array in checkpoint.arrays.values())
    assert lines(tmp_path, "step")[-1]["loss"] is None


def write_images(folder, count, bad):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:03}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        if i in bad:
            path.write_bytes(path.read_bytes()[:100])


# Bugs caught: one corrupt file that ends a run; a corrupt file that nobody hears of.
def test_a_corrupt_image_is_skipped_and_named(tmp_path):
    write_images(tmp_path / "images", 40, bad={7})
    recipe = tiny_recipe(data__kind="images", data__path=str(tmp_path / "images"), data__max_bad_share=0.1)
    result = pretrain(recipe, run_dir=tmp_path / "run", quiet=True)
    assert result.summary["steps"] == 10
    assert result.summary["bad_images"] == 1
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith("007.png\t")


# Bug caught: a TensorFlow error with a stack trace where the data's own error is meant.
def test_too_many_corrupt_images_stop_the_run(tmp_path):
    write_images(tmp_path / "images", 40, bad=set(range(10)))
    recipe = tiny_recipe(data__kind="images", data__path=str(tmp_path / "images"), data__max_bad_share=0.1)
    with pytest.raises(DataError, match=r"data\.max_bad_share"):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True)


# Bug caught: a model that is built before it is known that there is nothing to train on.
def test_fewer_images_than_a_batch_is_an_error_before_anything_is_built(tmp_path):
    write_images(tmp_path / "images", 5, bad=set())
    with pytest.raises(RecipeError, match="5 images do not fill one batch of 8"):
        pretrain(
            tiny_recipe(data__kind="images", data__path=str(tmp_path / "images")), run_dir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
