"""A process that extracts features: python run_features.py IMAGES OUTPUT|I/N [BATCHES_UNTIL_KILLED].

I/N is a part in the folder `parts` next to IMAGES.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evaluate.feature_parts import Part
from evaluate.features import extract_features
from tests.evaluate.models import NumpyBackend, class_folders

if __name__ == "__main__":
    images, output, *until = sys.argv[1:]
    kill = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if until else None
    model = NumpyBackend(stop_after=int(until[0]) if until else None, stop=kill)
    number = output.split("/")
    target = (
        Path(output) if output.startswith("/") else Part(Path(images).parent / "parts", *map(int, number))
    )
    result = extract_features(model, class_folders(images), target, batch_size=3, save_seconds=0)
    print(result.images_before)
