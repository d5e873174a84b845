"""Probe and fine-tuning by two worker processes on loopback."""

import csv
import json
import signal

import pytest

from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from tests.classifiers import tiny_classifier_recipe
from tests.ports import reserve_port
from tests.training.runs import (
    CLASSIFIER,
    assert_equal_but_for_rounding,
    finish,
    lines,
    newest,
    start,
    wait_until,
)


def images_by_class(run_dir):
    rows = csv.DictReader((run_dir / "per_class.csv").read_text().splitlines())
    return {row["class"]: int(row["images"]) for row in rows}


def last(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["last"]


# Bugs caught: workers that train on the same half of a batch, batch statistics of one worker, gradients that are
# summed and not averaged, a validation that counts images twice, or the black ones that fill up a batch; a worker
# that is no chief and writes.
def test_fine_tuning_by_two_workers_equals_one_process(tmp_path, pretrained):
    # Few steps: a ReLU that rounding turns over changes a gradient by half a percent, as another order of the
    # batch does in one process, and each step makes more of it.
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, train__epochs=1, train__batch_size=512, optimizer__backbone_learning_rate=0.002
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    master = f"127.0.0.1:{reserve_port()}"
    folders = [tmp_path / "chief", tmp_path / "other"]
    workers = [
        start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, f, 2, rank, master)
        for rank, f in enumerate(folders)
    ]
    finish(*workers, start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, tmp_path / "alone"))
    assert not folders[1].exists()
    assert_equal_but_for_rounding(
        newest(tmp_path / "alone", "finetune"), newest(tmp_path / "chief", "finetune")
    )
    assert images_by_class(tmp_path / "chief") == images_by_class(tmp_path / "alone")
    assert sum(images_by_class(tmp_path / "chief").values()) == 360
    assert last(tmp_path / "chief")["loss"] == pytest.approx(last(tmp_path / "alone")["loss"], rel=2e-3)
    # An image of the 360 on the border of two classes may fall on either side.
    assert last(tmp_path / "chief")["top1"] == pytest.approx(last(tmp_path / "alone")["top1"], abs=0.006)


# Bugs caught: a signal that stops one worker and hangs the other, a frozen backbone that moves on one of them, a
# probe that cannot go on with fewer workers.
def test_a_probe_of_two_workers_is_stopped_and_one_process_goes_on(tmp_path, pretrained):
    save_recipe(
        tiny_classifier_recipe(ProbeRecipe, train__epochs=3, train__batch_size=32), tmp_path / "recipe.yaml"
    )
    alone = start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, tmp_path / "alone")
    master, run = f"127.0.0.1:{reserve_port()}", tmp_path / "run"
    workers = [
        start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, run, 2, rank, master) for rank in range(2)
    ]
    wait_until(lambda: any(line["step"] >= 50 for line in lines(run)), *workers)  # past the first validation
    workers[1].send_signal(signal.SIGTERM)  # not the chief
    for worker in workers:
        worker.communicate(timeout=240)
    assert workers[1].returncode == 143
    assert workers[0].returncode != 0
    stopped_at = newest(run, "probe").step
    assert 50 <= stopped_at < 132
    finish(alone, start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, run))
    # It went on, and did not start anew.
    assert json.loads((run / "summary.json").read_text())["resumed_from_step"] == stopped_at
    assert_equal_but_for_rounding(newest(tmp_path / "alone", "probe"), newest(run, "probe"))
    begun = CheckpointStore(pretrained / "checkpoints", kind="pretrain").read(5).arrays
    ended = newest(run, "probe").arrays
    assert all((begun[name] == ended[name]).all() for name in begun if name.startswith("backbone/"))
    assert last(run)["loss"] == pytest.approx(last(tmp_path / "alone")["loss"], rel=2e-3)
