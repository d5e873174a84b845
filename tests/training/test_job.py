"""What all jobs share: log lines at a resume, explained failures, a process that ends."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from swav_tf.plumbing.errors import DataError, SwavError
from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.runs.checkpoint import Checkpoint
from swav_tf.training.checkpointing import log_config_changes
from swav_tf.training.cluster import Topology
from swav_tf.training.failures import WorkerEnded, explained_failures
from swav_tf.training.job import open_job
from tests.classifiers import tiny_classifier_recipe
from tests.swav_models import tiny_recipe


def team(replicas=1, workers=1):
    return Topology("any", workers=workers, worker=0, replicas=replicas, devices="CPU")


def log_changes(before, now, replicas, *, trainable=True):
    facts = {"recipe": before.model_dump(mode="json"), "replicas": replicas[0], "images": {"images": 80}}
    log_config_changes(
        Checkpoint(step=7, arrays={}, facts=facts, path=Path("step-7")),
        SimpleNamespace(backbone=SimpleNamespace(trainable=trainable)),
        recipe=now,
        team=team(replicas[1]),
    )


# Bug caught: settings that change without a message.
def test_changed_settings_are_logged(logged):
    log_changes(tiny_recipe(), tiny_recipe(), (1, 1))
    assert logged == [("INFO", "Resuming from step 7 (step-7).")]
    log_changes(tiny_recipe(), tiny_recipe(data__threads=3, checkpoint__keep_last=1), (1, 4))
    text = "\n".join(message for _, message in logged)
    assert "4 instead of 1 replica: the batch size stays 8, 2 images each" in text
    assert "checkpoint:\n  checkpoint.keep_last: was 3, now 1\n  data.threads: was 1, now 3" in text


# Bug caught: a freeze that ended before the checkpoint and, in a longer run, begins again without a word.
def test_a_longer_run_may_freeze_the_prototypes_again(logged):
    settings = {"method__prototypes_frozen_epochs": 2, "method__prototypes_frozen_steps": None}
    log_changes(tiny_recipe(train__epochs=1, **settings), tiny_recipe(train__epochs=6, **settings), (1, 1))
    assert "The prototypes are frozen until step 20." in logged[-1][1]
    log_changes(tiny_recipe(train__epochs=1, **settings), tiny_recipe(train__epochs=2, **settings), (1, 1))
    assert "started with 2 epochs." in logged[-1][1]
    assert "frozen" not in logged[-1][1]


TINY = tiny_recipe()
SEPARATE = tiny_recipe(model__batch_norm={"synchronised": False})
FINETUNE = tiny_classifier_recipe(FinetuneRecipe)


# Bugs caught: a change of batch statistics without a warning; a warning where nothing changes.
@pytest.mark.parametrize(
    ("before", "now", "replicas", "trainable", "warning"),
    [
        (TINY, TINY, (1, 4), True, None),
        (TINY, tiny_recipe(train__accumulation_steps=2), (1, 1), True, "4 images instead of 8"),
        (SEPARATE, SEPARATE, (2, 4), True, "2 images instead of 4"),
        (FINETUNE, FINETUNE, (1, 2), True, None),
        (FINETUNE, tiny_classifier_recipe(FinetuneRecipe, train__accumulation_steps=4), (1, 1), True, "32 images"),
        (FINETUNE, tiny_classifier_recipe(FinetuneRecipe, train__accumulation_steps=4), (1, 1), False, None),
    ],
)  # fmt: skip
def test_changed_batch_statistics_are_warned_about(logged, before, now, replicas, trainable, warning):
    log_changes(before, now, replicas, trainable=trainable)
    warnings = [text for level, text in logged if level == "WARNING"]
    assert len(warnings) == (warning is not None)
    assert all(warning in text for text in warnings)


# Bugs caught: a stack trace where a remedy is needed; the message of another error in its place.
@pytest.mark.parametrize(
    ("raised", "workers", "expected", "message"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), 1, SwavError, "train.accumulation_steps=2"),
        (tf.errors.UnavailableError(None, None, "reset"), 2, WorkerEnded, "Another worker"),
        (tf.errors.UnavailableError(None, None, "reset"), 1, tf.errors.UnavailableError, "reset"),
        (tf.errors.UnknownError(None, None, "x DataError: 3 bad\n Trace"), 1, DataError, "^3 bad$"),
        (tf.errors.UnknownError(None, None, "other"), 1, tf.errors.UnknownError, "other"),
    ],
)
def test_failures_are_explained(raised, workers, expected, message):
    with (
        pytest.raises(expected, match=message) as error,
        explained_failures(TINY.train, team(workers, workers)),
    ):
        raise raised
    assert type(error.value) is expected
    assert getattr(error.value, "exit_code", None) == {WorkerEnded: 75, SwavError: 1, DataError: 1}.get(
        expected
    )


STOP_EARLY = """
import sys, time
import keras
from swav_tf.data.order import CropsByPosition
from swav_tf.training.pretrain import pretrain
from tests.swav_models import tiny_recipe

original = CropsByPosition.made

def slow(self, data, *, index, **place):
    time.sleep(0.05)
    if sys.argv[2] == "error" and index == 70:
        raise NameError("a programming error in the data set")
    return original(self, data, index=index, **place)

CropsByPosition.made = slow

class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[2] == "interrupt":
            raise KeyboardInterrupt

pretrain(tiny_recipe(data__threads=2), run_dir=sys.argv[1], quiet=True, callbacks=[Interrupt()])
"""


# Bug caught: an error after which the process hangs: the iterator is destroyed while images are being read.
@pytest.mark.multiprocess
def test_a_process_ends_while_images_are_being_read(tmp_path):
    messages = {"interrupt": "KeyboardInterrupt", "error": "a programming error"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STOP_EARLY, str(tmp_path / how), how], stderr=subprocess.PIPE, text=True
        )
        for how in messages
    ]
    for process, message in zip(processes, messages.values(), strict=True):
        try:
            _, errors = process.communicate(timeout=200)
        finally:
            process.kill()
        assert process.returncode not in (0, -9)
        assert message in errors


# Bug caught: `data.kind: auto` in config.yaml, so that a folder that grows is read otherwise later.
def test_the_recognized_kind_is_saved(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    with open_job(tiny_recipe(data__kind="auto", data__path=str(tmp_path)), tmp_path / "run") as job:
        assert job.recipe.data.kind == "images"
