"""Images for command lines to read."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(folder: Path, names: Iterable[str], *, height: int, width: int) -> Path:
    """Images of random pixels, the same at every call."""
    draw = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder
