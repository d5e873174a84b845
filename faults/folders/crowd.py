"""A hundred thousand files in one folder: none is lost or out of order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from faults.folders.ground import Ground, wrong
from faults.jobs import PRETRAIN, overrides

CROWD = 100_000
DIFFERENT = 100  # pictures among them


def crowd(ground: Ground, folder: Path) -> tuple[str, str]:
    """Features of all, and an epoch of training."""
    images = _crowded(folder)
    ended, (names, found) = ground.features_of(images, folder / "x.npz", "--batch", "512")
    if trouble := wrong(ended):
        return "", trouble
    if names != [f"all/{number:06d}.png" for number in range(CROWD)]:
        return "", f"{len(names)} rows, not in order"
    apart = np.abs(found[DIFFERENT:] - found[:-DIFFERENT]).max()
    if apart > 1e-4:
        return "", f"features of the same image differ by {apart}"
    settings = (*PRETRAIN, "data.kind=class_folders", "data.validation_split=null", "monitor.knn_every_epochs=0",
                "train.batch_size=20000", "train.epochs=1", "method.queue.length=0", "data.split=train",
                "crops=[{count: 2, size: 8, scale: [0.4, 1.0]}]", "train.accumulation_steps=20",
                "method.prototypes_frozen_steps=1")  # fmt: skip
    ended = ground.commands.run(
        ["pretrain", images, "-c", "demo", *overrides(settings), "--run-dir", folder / "run"],
        limit_s=600,
    )
    if trouble := wrong(ended):
        return "", trouble
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return f"features and a training epoch of {CROWD:,}", "" if summary["images"] == CROWD else str(summary)


def _crowded(folder: Path) -> Path:
    """Class folders with one class; each picture has a thousand names."""
    first, images = folder / "first", folder / "images"
    first.mkdir()
    draw = np.random.default_rng(4)
    for number in range(DIFFERENT):
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(first / f"{number}.png")
    (images / "all").mkdir(parents=True)
    for number in range(CROWD):
        os.link(first / f"{number % DIFFERENT}.png", images / "all" / f"{number:06d}.png")
    return images
