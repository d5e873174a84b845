"""Probe and fine-tuning by two worker processes on loopback."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swav_tf.classifier_recipe import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe_files import save_recipe
from swav_tf.training.checkpoint import CheckpointStore
from swav_tf.training.rendezvous import free_port
from tests.classifiers import pretraining_run, tiny_classifier_recipe

SCRIPT = Path(__file__).with_name("run_classifier.py")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretraining_run(tmp_path_factory.mktemp("pretrained"))


def start(folder, model, run_dir, *cluster):
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder / "recipe.yaml", model, run_dir, *map(str, cluster)],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, code=0):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == code, errors[-3000:]


def newest(run_dir, kind):
    return CheckpointStore(run_dir / "checkpoints", kind=kind).newest()[0]


def assert_equal_but_for_rounding(one, other):
    """Each array within 1 % of its norm; momentum, which is all differences, within 10 %."""
    assert one.step == other.step
    assert one.arrays.keys() == other.arrays.keys()
    for name, value in one.arrays.items():
        error = np.linalg.norm(value - other.arrays[name]) / max(np.linalg.norm(value), 1e-6)
        assert error < (0.1 if name.startswith("momentum/") else 0.01), f"{name}: {error:.2e}"


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
    master = f"127.0.0.1:{free_port()}"
    folders = [tmp_path / "chief", tmp_path / "other"]
    workers = [start(tmp_path, pretrained, f, 2, rank, master) for rank, f in enumerate(folders)]
    finish(*workers, start(tmp_path, pretrained, tmp_path / "alone"))
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
    alone = start(tmp_path, pretrained, tmp_path / "alone")
    master, run = f"127.0.0.1:{free_port()}", tmp_path / "run"
    workers = [start(tmp_path, pretrained, run, 2, rank, master) for rank in range(2)]
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 50:  # past the first validation
        time.sleep(0.005)
        assert all(process.poll() is None for process in workers), workers[0].stderr.read()
    workers[1].send_signal(signal.SIGTERM)  # not the chief
    for worker in workers:
        worker.communicate(timeout=240)
    assert workers[1].returncode == 143
    assert workers[0].returncode != 0
    assert 50 <= newest(run, "probe").step < 132
    finish(alone, start(tmp_path, pretrained, run))
    assert_equal_but_for_rounding(newest(tmp_path / "alone", "probe"), newest(run, "probe"))
    begun = CheckpointStore(pretrained / "checkpoints", kind="pretrain").read(5).arrays
    ended = newest(run, "probe").arrays
    assert all((begun[name] == ended[name]).all() for name in begun if name.startswith("backbone/"))
    assert last(run)["loss"] == pytest.approx(last(tmp_path / "alone")["loss"], rel=2e-3)
