"""Links, pipes and devices among images: links to images are images, loops end, the rest is left out or told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from faults.folders.ground import Ground, wrong


def links(ground: Ground, folder: Path) -> tuple[str, str]:
    """Features of a folder full of them."""
    images, elsewhere = folder / "images", folder / "elsewhere"
    for place in (images / "a", elsewhere):
        place.mkdir(parents=True)
        for number in range(5):
            noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / f"{number}.png")
    (images / "a" / "to a file.png").symlink_to(elsewhere / "0.png")
    (images / "a" / "to nothing.png").symlink_to(elsewhere / "none.png")
    itself = images / "a" / "to itself.png"
    itself.symlink_to(itself)
    (images / "a" / "to a device.png").symlink_to("/dev/zero")
    os.mkfifo(images / "a" / "pipe.png")
    (images / "a" / "loop").symlink_to(images)
    (images / "a" / "up").symlink_to(images / "a")
    (images / "b").symlink_to(elsewhere)
    ended, _ = ground.features_of(images, folder / "x.npz")
    if (trouble := wrong(ended, 1)) or itself.name not in ended.stderr:
        return "", f"a link to itself must be told: {trouble or ended}"
    itself.unlink()
    ended, (names, _) = ground.features_of(images, folder / "x.npz")
    if trouble := wrong(ended):
        return "", trouble
    wanted = sorted([f"{place}/{number}.png" for place in "ab" for number in range(5)] + ["a/to a file.png"])
    return "followed once, loops end", "" if sorted(names) == wanted else f"features of {names}"
