"""Probes and fine-tuning as jobs: what they leave alone, refuse and write; resuming; two workers."""

import csv
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from swav_tf.data.decode import evaluation_view
from swav_tf.data.digits import Digits
from swav_tf.plumbing.errors import DataError, RecipeError, UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, save_recipe
from swav_tf.runs.checkpoint import CheckpointError
from swav_tf.runs.folder import best_step, epoch_in_words
from swav_tf.training.cached_probe import probe_cached
from swav_tf.training.checkpointing import StoppedBySignal
from swav_tf.training.classifier import load_classifier, start_from
from swav_tf.training.classify import finetune, probe, still_improving
from tests.classifiers import pretraining_run, tiny_classifier_recipe
from tests.ports import reserve_port
from tests.training.runs import (
    StopAfter,
    assert_equal_but_for_rounding,
    assert_same_bits,
    finish,
    lines,
    metrics,
    newest,
    start,
)


def accuracy_of(run_dir, recipe, *, best=False):
    """Return the top-1 accuracy of the saved model on the test digits, computed here."""
    model, _, _ = load_classifier(run_dir, best=best)
    digits = Digits("test")
    views = np.stack([evaluation_view(digits.read(i), recipe.data.evaluation) for i in range(360)])
    return np.mean(model.probabilities(views).numpy().argmax(axis=1) == [digits.label(i) for i in range(360)])


def images_by_class(run_dir):
    with (run_dir / "per_class.csv").open() as file:
        return {row["class"]: (int(row["images"]), float(row["top1"])) for row in csv.DictReader(file)}


def assert_backbone_is(run_dir, kind, pretrained):
    begun, ended = newest(pretrained).arrays, newest(run_dir, kind).arrays
    names = [name for name in begun if name.startswith("backbone/")]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(begun[name], ended[name], err_msg=name)
    assert not any(name.startswith("momentum/backbone") for name in ended)


# Bugs caught: batch normalization in training mode, a gradient or decay that reaches the backbone, moving averages
# that move; a best epoch that is the last, a figure under another's name, a file that is missing; a probe that resumes
# with another backbone, other images, or as another kind of probe; the accuracy on other validation images, from before.
def test_a_probe_leaves_the_backbone_and_a_complete_folder(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(ProbeRecipe, train__epochs=4, checkpoint__keep_last=1)
    run = tmp_path / "run"
    result = probe(recipe, model=pretrained, run_dir=run, quiet=True)
    assert_backbone_is(run, "probe", pretrained)
    assert (np.abs(newest(run, "probe").arrays["classifier/kernel"]) > 0).all()

    found = lines(run, "validation")
    tops = [line["top1"] for line in found]
    assert [line["step"] for line in found] == [11, 22, 33, 44]
    summary = result.summary
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (summary["last"]["epoch"], summary["last"]["top1"]) == (4, tops[-1])
    assert (summary["best"]["epoch"], summary["best"]["top1"]) == (1 + int(np.argmax(tops)), max(tops))
    best = best_step(run)
    assert best == 11 * summary["best"]["epoch"]
    names = {f"step-{step:09d}" for step in (best, 44)}
    assert {path.name for path in (run / "checkpoints").iterdir()} == names
    assert accuracy_of(run, recipe, best=True) == pytest.approx(max(tops))
    number = summary["best"]["epoch"]
    assert epoch_in_words(run, recipe, best=True) == f"best epoch ({number})"
    first = "best epoch (1)" if number == 1 else "step 11"
    for step, words in ((None, "last epoch (4)"), (44, "last epoch (4)"), (11, first)):
        assert epoch_in_words(run, recipe, best=False, step=step) == words
    assert (summary["train_images"], summary["validation_images"]) == (1437, 360)
    assert accuracy_of(run, recipe) == pytest.approx(tops[-1])
    rows = images_by_class(run)
    assert list(rows) == list("0123456789")
    assert sum(images for images, _ in rows.values()) == 360
    assert sum(images * top1 for images, top1 in rows.values()) / 360 == pytest.approx(tops[-1])
    with Image.open(run / "confusion.png") as picture:
        assert min(picture.size) > 300

    again = probe(recipe, model=pretrained, run_dir=run, quiet=True)
    assert again.summary == summary  # nothing was done
    data = recipe.data.model_copy(update={"validation_split": "train"})
    changed = {"recipe": recipe.model_copy(update={"data": data}), "model": pretrained, "run_dir": run}
    others = probe(**changed, quiet=True).summary
    rows = images_by_class(run)
    assert others["validation_images"] == sum(images for images, _ in rows.values()) == 1437
    assert others["last"] == others["best"] != summary["last"]
    assert sum(images * top1 for images, top1 in rows.values()) / 1437 == pytest.approx(
        others["last"]["top1"]
    )
    assert probe(**changed, quiet=True).summary == others  # measured once
    returned = probe(recipe, model=pretrained, run_dir=run, quiet=True).summary
    assert [returned[key] for key in ("last", "best")] == [summary[key] for key in ("last", "best")]
    model, _, facts = load_classifier(run)
    assert facts.origin["step"] == 5
    np.testing.assert_array_equal(model.classifier.kernel.numpy(), result.model.classifier.kernel.numpy())

    digits, subset = Digits("train"), tmp_path / "subset.txt"
    subset.write_text("\n".join(digits.image_name(i) for i in range(700)))
    options = {"model": pretrained, "run_dir": run, "quiet": True}
    with pytest.raises(UsageError, match="weights: was"):
        probe(recipe, **options, from_scratch=True)
    with pytest.raises(UsageError, match="number of training images: was 1437, now 700"):
        probe(recipe.model_copy(update={"subset": str(subset)}), **options)
    with pytest.raises(UsageError, match="probe: was sgd, now cached features"):
        probe_cached(recipe, **options)


# Bugs caught: a warning for noise, none for a probe that ends early, a mean over the wrong epochs; a crash after
# an epoch without a finite step, whose line has no loss.
@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        ([2.3 - 0.05 * epoch for epoch in range(20)], "fell by 0.100 in the last 2 of 20 epochs"),
        ([2.3] + [1.0 + 0.01 * (-1) ** epoch for epoch in range(19)], None),
        ([2.3, 1.0], "fell by 1.300 in the last 1 of 2 epochs"),
        ([2.3], None),
        ([None, 2.3, 1.0], "fell by 1.300 in the last 1 of 2 epochs"),
    ],
)
def test_training_that_ends_too_early_is_reported(losses, fell, tmp_path):
    epochs = ({"kind": "epoch"} | ({} if loss is None else {"loss": loss}) for loss in losses)
    kinds = [{"kind": "validation", "loss": 9.0}, *epochs]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, kinds)))
    found = still_improving(tmp_path / "metrics.jsonl", chance=np.log(10))
    assert found is None if fell is None else fell in found


# Bugs caught: a probe that resumes from a pretraining checkpoint or moves a pretraining run away; training that begins
# before it is known that data, recipe or weights are wrong.
def test_errors_are_found_before_training(tmp_path, pretrained):
    def refuse(error, match, model=pretrained, job=probe, run_dir=None, fresh=False, **changes):
        recipe, run_dir = tiny_classifier_recipe(ProbeRecipe, **changes), run_dir or tmp_path / "run"
        with pytest.raises(error, match=match):
            job(recipe, model=model, run_dir=run_dir, fresh=fresh, quiet=True)
        assert not (tmp_path / "run" / "checkpoints").exists()

    (tmp_path / "empty.txt").write_text("\n\n")
    refuse(DataError, "contains no name", subset=str(tmp_path / "empty.txt"))
    refuse(RecipeError, "1437 images do not fill one batch of 2000", train__batch_size=2000)
    refuse(UsageError, "must contain config.yaml", model=tmp_path)
    damaged = pretraining_run(tmp_path / "damaged")
    (damaged / "checkpoints" / "step-000000005" / "state.safetensors").write_bytes(b"0")
    refuse(CheckpointError, "damaged", model=damaged)
    files = sorted(path.name for path in pretrained.iterdir() if path.name != ".lock")
    for job, fresh in ((probe, True), (probe_cached, False)):
        refuse(UsageError, "contains a pretrain run", job=job, run_dir=pretrained, fresh=fresh)
    assert sorted(path.name for path in pretrained.iterdir() if path.name != ".lock") == files


# Bugs caught: momentum, moving averages, step or best epoch missing from a checkpoint; images that come twice after a
# mid-epoch resume; a validation that is written twice or counts for the wrong epoch; a backbone that stays as it was;
# a config.yaml without the kind that the images were read as; a classifier that is fitted again, to a changed backbone.
def test_fine_tuning_resumes(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, data__kind="auto", data__path="digits", init_classifier="probe"
    )
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = {"model": pretrained, "quiet": True}
    first = finetune(recipe, run_dir=straight, **options)
    with pytest.raises(StoppedBySignal, match="after step 14"):
        finetune(recipe, run_dir=stopped, callbacks=[StopAfter(13)], **options)
    second = finetune(recipe, run_dir=stopped, **options)
    assert (second.summary["resumed_from_step"], second.summary["steps"]) == (14, 22)
    assert load_any_recipe(straight / "config.yaml").data.kind == "digits"
    assert_same_bits(newest(straight, "finetune"), newest(stopped, "finetune"))
    assert metrics(straight) == metrics(stopped)
    for key in ("initial", "last", "best", "train_loss_first", "train_loss_last"):
        assert first.summary[key] == second.summary[key]
    begun, ended = newest(pretrained).arrays, newest(stopped, "finetune").arrays
    assert all((ended[name] != begun[name]).any() for name in begun if name.startswith("backbone/"))


# Bugs caught: fine-tuning that starts from a random classifier all the same, or from one by other images or labels; a run
# without accuracy, since a callback ended it before its first validation.
def test_fine_tuning_starts_from_the_probe(tmp_path, pretrained):
    still = {"optimizer__backbone_learning_rate": 1e-12, "optimizer__classifier_learning_rate": 1e-12}
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, init_classifier="probe", train__batch_size=700, train__epochs=1, **still
    )
    tuned = finetune(recipe, model=pretrained, run_dir=tmp_path / "tuned", quiet=True, callbacks=[Enough()])
    assert tuned.summary["last"]["step"] == 1
    probed = probe_cached(
        tiny_classifier_recipe(ProbeRecipe), model=pretrained, run_dir=tmp_path / "probe", quiet=True
    )
    for mine, theirs in zip(tuned.model.classifier.weights, probed.model.classifier.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-6)
    assert tuned.summary["initial"]["top1"] == pytest.approx(probed.summary["last"]["top1"], abs=1 / 360)


# Bug caught: random weights that are pretrained or differ between runs.
def test_from_scratch_means_random_weights(pretrained):
    starts = [start_from(pretrained, from_scratch=scratch) for scratch in (True, True, False)]
    assert [start.origin["weights"] for start in starts] == ["random", "random", "pretrained"]
    recipe = tiny_classifier_recipe(FinetuneRecipe)
    one, again, other = (
        start.build(recipe, class_count=10).backbone.get_layer("conv1").kernel.numpy() for start in starts
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


STOP_WHILE_FITTING = """
import os, signal, sys, time
from swav_tf.training import logistic
from swav_tf.training.cached_probe import probe_cached
from tests.classifiers import tiny_classifier_recipe
from swav_tf.recipe.classifier import ProbeRecipe

def swallowed(*arguments):  # as TensorFlow does while it traces
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except BaseException:
        time.sleep(20)

logistic.readable_features = swallowed
probe_cached(tiny_classifier_recipe(ProbeRecipe), model=sys.argv[1], run_dir=sys.argv[2], quiet=True)
"""


# Bug caught: Ctrl-C that TensorFlow swallows, after which the job continues.
@pytest.mark.multiprocess
def test_a_signal_ends_the_fit(tmp_path, pretrained):
    command = [sys.executable, "-c", STOP_WHILE_FITTING, str(pretrained), str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 130, ended.stderr
    assert "Stopped by SIGINT" in ended.stderr


class Enough(keras.callbacks.Callback):
    """End the training after a step."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


def start_workers(recipe, pretrained, *run_dirs):
    master = f"127.0.0.1:{reserve_port()}"
    return [
        start(recipe, run_dir, len(run_dirs), rank, master, SWAV_TF_TEST_MODEL=str(pretrained))
        for rank, run_dir in enumerate(run_dirs)
    ]


def last(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["last"]


# Bugs caught: workers that train on the same half of a batch, batch statistics of one worker, gradients that are summed
# and not averaged, a validation that counts images twice, or padding; a worker other than the chief that writes.
@pytest.mark.multiprocess
def test_fine_tuning_by_two_workers_equals_one_process(tmp_path, pretrained):
    # Few steps and a low rate: a ReLU that rounding turns over changes a gradient by half a percent.
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, train__epochs=1, train__batch_size=512, optimizer__backbone_learning_rate=0.002
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    alone, chief, other = (tmp_path / name for name in ("alone", "chief", "other"))
    workers = start_workers(tmp_path / "recipe.yaml", pretrained, chief, other)
    finetune(recipe, model=pretrained, run_dir=alone, quiet=True)
    finish(*workers)
    assert not other.exists()
    assert_equal_but_for_rounding(newest(alone, "finetune"), newest(chief, "finetune"))
    images = [{name: count for name, (count, _) in images_by_class(run).items()} for run in (alone, chief)]
    assert images[0] == images[1]
    assert last(chief)["loss"] == pytest.approx(last(alone)["loss"], rel=2e-3)
    assert last(chief)["top1"] == pytest.approx(last(alone)["top1"], abs=0.006)  # two images on a border
