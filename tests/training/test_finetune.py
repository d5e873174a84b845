"""Fine-tuning as a job: killed, stopped, over two replicas."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from swav_tf.classifier_recipe import FinetuneRecipe
from swav_tf.recipe_files import save_recipe
from swav_tf.training.callbacks.checkpointing import StoppedBySignal
from swav_tf.training.checkpoint import CheckpointStore
from swav_tf.training.classifier_folder import load_classifier
from swav_tf.training.finetune import finetune
from tests.classifiers import pretraining_run, tiny_classifier_recipe

SCRIPT = Path(__file__).with_name("run_classifier.py")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretraining_run(tmp_path_factory.mktemp("pretrained"))


def start(folder, model, run_dir):
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder / "recipe.yaml", model, run_dir], stderr=subprocess.PIPE, text=True
    )


def lines(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def metrics(run_dir):
    clocks = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines(run_dir)]


def final(run_dir):
    return CheckpointStore(run_dir / "checkpoints", kind="finetune").newest()[0]


def assert_same_bits(one, other):
    assert one.step == other.step
    assert one.facts["position"] == other.facts["position"]
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name], err_msg=name)


# Bugs caught: momentum, moving averages, step or best epoch missing from a checkpoint; images that come twice after
# a mid-epoch resume; a validation that is written twice or counts towards the wrong epoch.
def test_killed_mid_epoch_ends_with_the_same_bits(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, train__epochs=4, train__batch_size=32, checkpoint__every_minutes=0.002
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    undisturbed = start(tmp_path, pretrained, tmp_path / "a")
    killed = start(tmp_path, pretrained, tmp_path / "b")
    while len(lines(tmp_path / "b")) < 75 and killed.poll() is None:  # in the second epoch
        time.sleep(0.002)
    assert killed.poll() is None, killed.stderr.read()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = start(tmp_path, pretrained, tmp_path / "b")
    for process in (undisturbed, again):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    resumed_from = json.loads((tmp_path / "b" / "summary.json").read_text())["resumed_from_step"]
    assert 0 < resumed_from < 4 * 44
    assert_same_bits(final(tmp_path / "a"), final(tmp_path / "b"))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in "ab"]
    assert summaries[0]["last"] == summaries[1]["last"]
    assert summaries[0]["best"] == summaries[1]["best"]


class StopAfter(keras.callbacks.Callback):
    """Asks the run to stop, as a signal does, once so many batches have ended; the next one is the last."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.wishes[0] = 1


# Bugs caught: replicas that are asked for and not made, a run that is bound to its number of replicas, a backbone
# that stays as it was, figures that belong to another model than the one that is saved.
def test_two_replicas_stop_and_one_goes_on(tmp_path, pretrained):
    def recipe(replicas):
        return tiny_classifier_recipe(
            FinetuneRecipe,
            train__logical_cpus=replicas,
            train__strategy="mirrored" if replicas == 2 else "one_device",
        )

    with pytest.raises(StoppedBySignal, match="after step 5"):
        finetune(recipe(2), model=pretrained, run_dir=tmp_path, quiet=True, callbacks=[StopAfter(4)])
    first = final(tmp_path)
    result = finetune(recipe(1), model=pretrained, run_dir=tmp_path, quiet=True)
    assert (result.summary["resumed_from_step"], result.summary["steps"]) == (5, 22)
    names = [name for name in first.arrays if name.startswith("backbone/")]
    assert all((first.arrays[name] != final(tmp_path).arrays[name]).any() for name in names)
    loaded, _, facts = load_classifier(tmp_path)
    assert facts.class_names == tuple("0123456789")
    for one, other in zip(result.model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# Bug caught: a comparison from scratch that begins with the pretrained weights, or with the same seed but others.
def test_from_scratch_begins_at_random(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(FinetuneRecipe, train__epochs=1, train__batch_size=700)
    results = [
        finetune(recipe, model=model, run_dir=tmp_path / str(i), from_scratch=scratch, quiet=True)
        for i, (model, scratch) in enumerate([(pretrained, True), (pretrained, True), (pretrained, False)])
    ]
    losses = [result.summary["train_loss_first"] for result in results]
    assert losses[0] == losses[1] != losses[2]
    assert [result.summary["origin"]["weights"] for result in results] == ["random", "random", "pretrained"]
