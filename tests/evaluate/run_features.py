"""A process that extracts features: python run_features.py IMAGES OUTPUT [BATCHES_UNTIL_KILLED]."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evaluate.features import extract_features
from tests.evaluate.models import NumpyRunner, class_folders

if __name__ == "__main__":
    images, output, *until = sys.argv[1:]
    runner = NumpyRunner()
    run = runner.run

    def run_or_die(views):
        if until and len(runner.batches) == int(until[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return run(views)

    runner.run = run_or_die
    result = extract_features(runner, class_folders(images), Path(output), batch_size=3, shard_size=4)
    print(result.images_before)
