"""A process that ends early must end: TensorFlow can wait for Python calls that wait for it."""

import subprocess
import sys

import pytest

STOP_EARLY = """
import sys, time
import numpy as np
from swav_tf.data import order
from swav_tf.plumbing.errors import SwavError
from swav_tf.training.pretrain import pretrain
from tests.swav_models import tiny_recipe

original = order.read_image

def slow(source, index):
    time.sleep(0.05)
    if sys.argv[2] == "error" and index == 70:
        raise NameError("a programming error in the data set")
    return original(source, index)

order.read_image = slow

import keras

class StopAfter(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[2] == "wish":
            self.model.wishes[0] = 1
        elif sys.argv[2] == "interrupt":
            raise KeyboardInterrupt

pretrain(tiny_recipe(data__threads=2), run_dir=sys.argv[1], quiet=True, callbacks=[StopAfter()])
"""


# Bug caught: Ctrl-C, an error or a callback that stops a run, after which the process hangs for ever, since the
# iterator is destroyed while images are being read.
@pytest.mark.parametrize(
    ("how", "message"),
    [("wish", "StoppedBySignal"), ("interrupt", "KeyboardInterrupt"), ("error", "a programming error")],
)
def test_a_process_ends_while_images_are_being_read(tmp_path, how, message):
    command = [sys.executable, "-c", STOP_EARLY, str(tmp_path / "run"), how]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert process.returncode not in (0, -9)
    assert message in process.stderr
