"""One small pretraining run on the digits, for all tests that need a run folder."""

import functools
import os
from pathlib import Path

from filelock import FileLock

from swav_tf.training.pretrain import pretrain
from tests.swav_models import SMALL, tiny_recipe


@functools.cache
def tiny_run() -> Path:
    """Its folder, trained at the first call; it must be left as it is."""
    shared = Path(os.environ["SWAV_TF_TEST_SHARED"])  # by all processes of a test run
    folder = shared / "run"
    with FileLock(shared / "lock"):
        if not (folder / "summary.json").exists():
            recipe = tiny_recipe(train__batch_size=128, train__epochs=1, model__backbone=SMALL)
            pretrain(recipe, run_dir=folder, quiet=True)
    return folder
