"""Pretraining runs in this process: their files, resuming on other replicas, bad images, divergence, weights."""

import json
import math
import os
import shutil
import tempfile

import cv2
import keras
import numpy as np
import pytest

from swav_tf.plumbing.errors import DataError, RecipeError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.runs.checkpoint import CheckpointError
from swav_tf.training.build import load_swav, read_pretrained
from swav_tf.training.checkpointing import Diverged, StoppedBySignal
from swav_tf.training.pretrain import pretrain
from swav_tf.weights.convert import import_weights
from tests.swav_models import SMALL, tiny_recipe
from tests.tiny_run import tiny_run
from tests.training.runs import StopAfter, assert_same_bits, assert_same_run, lines, newest

STEPS_11 = {"train__batch_size": 16}  # an epoch of the images has 11 steps


def write_images(folder, count, bad=()):
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:03}.png"
        cv2.imwrite(str(path), draw.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        if number in bad:
            path.write_bytes(path.read_bytes()[:100])


def recipe_of_images(folder, **changes):
    return tiny_recipe(data__kind="images", data__path=str(folder), **changes)


@pytest.fixture
def images(tmp_path):
    """A folder of 176 images."""
    write_images(tmp_path / "images", 176)
    return tmp_path / "images"


# Bugs caught: a file that is missing, an epoch with a step too many, a summary with other numbers; a run that is
# trained again after its end, or resumes with other settings; a folder that does not give its model back; sources that
# AutoGraph leaves in /tmp when a run is killed.
def test_a_run_leaves_a_complete_folder(tmp_path, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    digits_11 = {"train__batch_size": 128}  # an epoch of the digits has 11 steps
    recipe = tiny_recipe(**digits_11, data__validation_split="test", monitor__knn_every_epochs=2)
    result = pretrain(recipe, run_dir=tmp_path, quiet=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "summary.json"}
    assert json.loads((tmp_path / "summary.json").read_text()) == result.summary
    steps, epochs = lines(tmp_path, "step"), lines(tmp_path, "epoch")
    assert [line["step"] for line in steps] == list(range(1, 23))
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert epochs[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in steps[:11]]))
    assert result.summary["loss_first"] == steps[0]["loss"]
    assert result.summary["loss_last"] == epochs[1]["loss"]
    assert result.summary["ln_k"] == pytest.approx(math.log(12))
    assert 0 < result.summary["prototypes_used"] == epochs[1]["prototypes_used"] <= 12
    [knn], [baselines] = lines(tmp_path, "knn"), lines(tmp_path, "knn_baselines")
    assert baselines["step"] == 0
    for key in ("knn_top1_initial", "knn_top1_pixels"):
        assert 0.2 < baselines[key] == result.summary[key] <= 1
    assert 0.2 < knn["knn_top1"] == result.summary["knn_top1"] <= 1

    assert result.summary["view_retrieval"] is None  # k-NN says more
    assert list(temporary.iterdir()) == []

    again = pretrain(recipe, run_dir=tmp_path, quiet=True)
    assert again.summary == result.summary == json.loads((tmp_path / "summary.json").read_text())
    model, loaded = load_swav(tmp_path)
    assert loaded == recipe
    for one, other in zip(result.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    with pytest.raises(KeyboardInterrupt):  # with an epoch more the run has not ended any longer
        pretrain(
            recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 3})}),
            run_dir=tmp_path,
            quiet=True,
            callbacks=[keras.callbacks.LambdaCallback(on_train_begin=interrupt)],
        )
    assert not (tmp_path / "summary.json").exists()
    other_settings = tiny_recipe(**digits_11, method__epsilon=0.04)
    for copy in (True, False):  # the checkpoint knows the recipe, too
        if not copy:
            (tmp_path / "config.yaml").unlink()
        with pytest.raises(UsageError, match=r"method.epsilon: was 0.05, now 0.04"):
            pretrain(other_settings, run_dir=tmp_path, quiet=True)
    assert not (tmp_path / "config.yaml").exists()


def interrupt(logs):
    raise KeyboardInterrupt


# Bugs caught: replicas that are requested and not created; a queue of one replica only in the checkpoint, or restored
# to the wrong replica; a run that cannot move to fewer replicas, or to more.
def test_a_run_that_moves_between_replicas_equals_an_uninterrupted_one(tmp_path, images):
    def on_replicas(number):
        return recipe_of_images(
            images,
            **STEPS_11,
            method__queue={"length": 32},
            train__logical_cpus=number,
            train__strategy="mirrored" if number == 2 else "one_device",
            optimizer__peak_learning_rate=0.2,
        )

    pretrain(on_replicas(1), run_dir=tmp_path / "straight", quiet=True)
    run = tmp_path / "moved"
    for replicas, stops in ((2, 7), (1, 14)):
        with pytest.raises(StoppedBySignal, match=f"after step {stops}"):
            pretrain(on_replicas(replicas), run_dir=run, quiet=True, callbacks=[StopAfter(6)])
        queues = newest(run).arrays["queue/projections"]
        assert queues.shape == (2, 32, 16)
        np.testing.assert_allclose(np.linalg.norm(queues, axis=-1), 1, rtol=1e-5)
    result = pretrain(on_replicas(2), run_dir=run, quiet=True)
    assert (result.summary["resumed_from_step"], result.summary["replicas"]) == (14, 2)
    assert newest(run).step == 22
    assert_same_run(newest(tmp_path / "straight"), newest(run))


# Bugs caught: state of a batch in parts that is missing from a checkpoint; a run that resumes with other images; pictures
# that are replaced without a word; a refused command that changes the run's recipe.
def test_a_stopped_run_in_parts_equals_an_uninterrupted_one(tmp_path, images, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    recipe = recipe_of_images(images, **STEPS_11, train__accumulation_steps=2, method__queue={"length": 32})
    pretrain(recipe, run_dir=tmp_path / "straight", quiet=True)
    with pytest.raises(StoppedBySignal, match="after step 7"):
        pretrain(recipe, run_dir=tmp_path / "run", quiet=True, callbacks=[StopAfter(6)])
    image = images / "000.png"
    image.rename(image.with_name("other.png"))
    config = tmp_path / "run" / "config.yaml"
    before, threads = config.read_text(), recipe.data.model_copy(update={"threads": 2})
    with pytest.raises(UsageError, match=r"with 176 images\. Received: 176 with other names"):
        pretrain(recipe.model_copy(update={"data": threads}), run_dir=tmp_path / "run", quiet=True)
    assert config.read_text() == before
    image.with_name("other.png").rename(image)
    os.utime(image, (1, 1))
    pretrain(recipe, run_dir=tmp_path / "run")
    assert "Sizes or modification times of image files have changed" in caplog.text
    assert_same_bits(newest(tmp_path / "straight"), newest(tmp_path / "run"))


# Bugs caught: one damaged file that ends a run, or is not reported; a TensorFlow error where the data's own is meant;
# a model that is built before it is known that there are too few images.
def test_damaged_images_are_skipped_until_they_are_too_many(tmp_path):
    write_images(tmp_path / "images", 40, bad={7})
    recipe = recipe_of_images(tmp_path / "images", data__max_bad_share=0.1, train__epochs=1)
    result = pretrain(recipe, run_dir=tmp_path / "run", quiet=True)
    assert (result.summary["steps"], result.summary["bad_images"]) == (5, 1)
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith("007.png\t")
    write_images(tmp_path / "bad", 40, bad=range(10))
    with pytest.raises(DataError, match=r"data\.max_bad_share"):
        pretrain(
            recipe_of_images(tmp_path / "bad", data__max_bad_share=0.1), run_dir=tmp_path / "b", quiet=True
        )
    write_images(tmp_path / "few", 5)
    with pytest.raises(RecipeError, match="5 images do not fill one batch of 8"):
        pretrain(recipe_of_images(tmp_path / "few"), run_dir=tmp_path / "f", quiet=True)
    assert not (tmp_path / "f").exists()


class Poison(keras.callbacks.Callback):
    """Make a weight NaN after some steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.head.get_layer("projection").bias.assign([np.nan] * 16)


class Enough(keras.callbacks.Callback):
    """End the training early."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 4


# Bugs caught: NaN that trains on unnoticed, an error without step or checkpoint, a poisoned checkpoint; a callback that
# cannot end a run, or ends it without a checkpoint; --fresh that removes a run.
def test_a_run_ends_when_it_diverges_or_a_callback_wants_it(tmp_path, images):
    recipe = recipe_of_images(
        images, **STEPS_11, train__max_non_finite_steps=3, checkpoint__keep_every_epochs=1
    )
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=r"3 steps in a row, up to step 16[\s\S]*step-000000011"):
        pretrain(recipe, run_dir=run, quiet=True, callbacks=[Poison(13)])
    assert newest(run).step == 11
    assert all(np.all(np.isfinite(array)) for array in newest(run).arrays.values())
    assert lines(run, "step")[-1]["loss"] is None
    result = pretrain(recipe, run_dir=run, quiet=True, fresh=True, callbacks=[Enough()])
    assert result.summary["steps"] == newest(run).step == 5
    assert result.summary["resumed_from_step"] is None
    assert newest(run / "previous-1").step == 11


# === Initial weights ===


# Bugs caught: weights that are initialized at random all the same, loaded again when the run resumes, or replaced
# during a run; an import that is trained further as if optimizer and position were known.
def test_a_run_starts_from_the_weights_of_another(tmp_path):
    # With so low a rate the weights are still recognizable after two steps.
    changes = {"train__epochs": 1, "optimizer__peak_learning_rate": 1e-6, "train__seed": 5}
    recipe = tiny_recipe(train__batch_size=700, model__backbone=SMALL, **changes)
    source, new = read_pretrained(tiny_run())[0], tmp_path / "new"
    result = pretrain(recipe, run_dir=new, weights=tiny_run(), quiet=True)
    arrays = newest(new).arrays
    for name in ("backbone/layer2_0_conv2/kernel", "head/hidden/kernel"):
        np.testing.assert_allclose(arrays[name], source.arrays[name], atol=1e-5)
    assert int(arrays["optimizer/iterations"][0]) == 2
    assert json.loads((new / "started_from.json").read_text())["sha256"] == source.facts["sha256"]
    assert pretrain(recipe, run_dir=new, weights=tiny_run(), quiet=True).summary == result.summary
    with pytest.raises(UsageError, match="was not started from"):
        pretrain(recipe, run_dir=new, weights=new, quiet=True)
    record = json.dumps({"run": str(tiny_run()), "sha256": "of an earlier checkpoint"})
    (new / "started_from.json").write_text(record)  # the source has been trained on since
    assert pretrain(recipe, run_dir=new, weights=tiny_run(), quiet=True).summary == result.summary

    imported = import_weights(tiny_run(), tmp_path / "import", overrides=["train.batch_size=700"])
    with pytest.raises(
        UsageError, match=r"imported weights .* pretrain \.\.\. --weights .*import --run-dir NEW"
    ):
        pretrain(imported.recipe, run_dir=tmp_path / "import", quiet=True)
    assert newest(tmp_path / "import").step == 0


# Bugs caught: features of an older checkpoint that pass for those of the newest; features by other settings than the
# weights were trained with.
def test_a_changed_run_is_not_read(tmp_path):
    run = shutil.copytree(tiny_run(), tmp_path / "run")
    step, config = newest(run).step, run / "config.yaml"
    later = run / "checkpoints" / "step-999999999"
    later.mkdir()
    with pytest.raises(CheckpointError, match=rf"step-999999999 is damaged[\s\S]*step {step}\. To use it"):
        read_pretrained(run)
    assert read_pretrained(run, step=step)[0].step == step
    later.rmdir()
    config.write_text(config.read_text().replace("threads: 1", "threads: 2"))
    assert read_pretrained(run)[1].data.threads == 2
    config.write_text(config.read_text().replace("std: [0.228,", "std: [0.128,"))
    with pytest.raises(UsageError, match=r"augment.std: was \[0.228, .* now \[0.128,"):
        read_pretrained(run)
