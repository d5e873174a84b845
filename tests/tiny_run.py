"""One small pretraining run on the digits, for all tests that need a run folder."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from swav_tf.training.pretrain import pretrain
from tests.swav_models import tiny_recipe


@functools.cache
def tiny_run() -> Path:
    """Its folder, trained at the first call; it must be left as it is."""
    folder = Path(tempfile.mkdtemp(prefix="swav-tf-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pretrain(tiny_recipe(train__batch_size=128, train__epochs=1), run_dir=folder, quiet=True)
    return folder
