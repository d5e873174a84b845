"""Jobs of `make_parts`; and a process that makes parts on Ray: python run_parts.py IMAGES FOLDER."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evaluate.feature_parts import Part
from evaluate.features import extract_features
from evaluate.part_workers import Devices, make_parts, ray_starts
from tests.evaluate.models import NumpyBackend, class_folders

PARTS = 4


def open_numpy(folders, *, once=None, always=None, fails=None, seconds=0.0):
    """Open the model; its process dies: `once` in a second batch, then the file exists; `always` in a part."""

    def make(part):
        dies = always == part.number

        def stop():
            if dies or not once.exists():
                once and once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        if fails == part.number:
            raise IndexError("no such image")
        time.sleep(seconds)
        model = NumpyBackend(stop_after=0 if dies else 1 if once else None, stop=stop)
        return extract_features(model, images, part, batch_size=3, save_seconds=0)

    images = class_folders(folders)
    return len(images.source), make


def parts_of(folder):
    return [Part(folder, number, PARTS) for number in range(1, PARTS + 1)]


def make_on_ray(folders, folder, **settings):
    starts = ray_starts(lambda cores: partial(open_numpy, folders, **settings), Devices("cpu", 2), 1)
    return make_parts(starts, parts_of(folder), lambda done, total: None)


if __name__ == "__main__":
    make_on_ray(Path(sys.argv[1]), Path(sys.argv[2]), seconds=1.0)
