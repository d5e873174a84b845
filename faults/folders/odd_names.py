"""Names that file systems allow and programs trip over: every file stays what it is, in every command."""

from __future__ import annotations

import csv
import os
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from faults.folders.ground import Ground, wrong
from faults.jobs import CLASSIFIER, overrides, pretrain
from faults.outcomes import differences
from swav_tf.data.folders import ClassFolders
from swav_tf.data.tfrecord import open_shards

# Bytes that are no UTF-8, what shells, CSV files and terminals trip over.
NAMES = (
    b"with space.png", b" leading.png", b"trailing .png", b"new\nline.png", b"tab\there.png", b"carriage\rreturn.png",
    b"latin-\xe9\xff.png", b"-dash.png", b"--help.png", b"quote\".png", b"apostrophe'.png", b"comma,semicolon;.png",
    b"back\\slash.png", b"star*question?.png", b"[bracket].png", b"$(touch canary).png", b"`touch canary`.png",
    b"\x1b[31mred.png", b"%s%n.png", b"{brace}.png", "ü\u202eright to left.png".encode(), "\U0001f600.png".encode(),
    b"CON.png", b"upper.PNG", b"\x7fdelete.png", b"=1+1.png", b"n" * 240 + b".png", b"#hash.png", b"~tilde.png",
)  # fmt: skip
CLASSES = (b"cl\xe9ss", b"class\nof two lines", b" class, with 'quotes'")
DAMAGED = 3  # place in NAMES of the file of each class that is cut off
DAMAGED_BYTES = 100

COUNT, BAD = len(CLASSES) * len(NAMES), len(CLASSES)


def odd_names(ground: Ground, folder: Path) -> tuple[str, str]:
    """All commands that read images, one after the other."""
    images = odd_folder(folder / "odd images\n")
    for part in (_features, _killed_run, _classifier, _shards):
        if trouble := part(ground, images, folder):
            return "", trouble
    return "features, a killed run, shards: names kept apart", ""


def odd_folder(folder: Path) -> Path:
    """Class folders and files of odd names, one file of each class damaged."""
    draw = np.random.default_rng(6)
    for class_name in CLASSES:
        inside = os.path.join(os.fsencode(folder), class_name)
        os.makedirs(inside)
        for number, name in enumerate(NAMES):
            path = os.path.join(inside, name)
            Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
                Path(os.fsdecode(path)), "PNG"
            )
            if number == DAMAGED:
                os.truncate(path, DAMAGED_BYTES)
    return folder


def _features(ground: Ground, images: Path, folder: Path) -> str:
    """The three formats: the same features, names that differ and can be printed, a list of what is unreadable."""
    outputs: list[np.ndarray] = []
    for ending in (".npz", ".npy", ".parquet"):
        ended, (names, found) = ground.features_of(images, folder / f"x{ending}", "--max-bad-share", "0.1")
        if trouble := wrong(ended):
            return trouble
        if len(names) != COUNT - BAD or len(set(names)) != COUNT - BAD:
            return f"{ending}: {len(set(names))} names of {len(names)} rows"
        if any("\n" in name or "\x1b" in name for name in names):
            return f"{ending}: names with control characters"
        outputs.append(found)
        if _rows(folder / f"x{ending}.unreadable.csv") != BAD:
            return f"{ending}: the list of what is unreadable does not have {BAD} lines"
    same = all(np.array_equal(outputs[0], found) for found in outputs)
    return "" if same else "the three formats hold other features"


def _killed_run(ground: Ground, images: Path, folder: Path) -> str:
    """A pretraining is killed and goes on to the same bits."""
    data = ("data.kind=class_folders", "data.validation_split=null", "data.max_bad_share=0.1", "train.batch_size=16",
            "monitor.knn_every_epochs=0")  # fmt: skip
    job = pretrain((images,), data)
    expected = ground.expected(job)
    running = ground.commands.start(job.arguments(folder))
    while not (folder / "run" / "metrics.jsonl").exists() and not running.has_ended():
        time.sleep(0.01)
    running.kill()
    running.wait()
    if trouble := wrong(ground.commands.run(job.arguments(folder))):
        return trouble
    if different := differences(expected, job.result(folder)):
        return different
    summary = expected["summary"]
    return "" if summary["bad_images"] == BAD else f"{summary} of {BAD} bad images"


def _classifier(ground: Ground, images: Path, folder: Path) -> str:
    """A probe is trained on the whole ones, for classifiers take no damaged images to validate on, and predicts all."""
    settings = (*CLASSIFIER, "data.kind=class_folders", "data.validation_split=null", "train.batch_size=16",
                "data.max_bad_share=0.1")  # fmt: skip
    clean = folder / "whole"
    shutil.copytree(images, clean)
    for path in clean.rglob("*"):
        if path.is_file() and path.stat().st_size == DAMAGED_BYTES:
            path.unlink()
    probe = ["probe", clean, clean, "--model", ground.made.run, "-c", "probe_digits", *overrides(settings)]
    predict = ["predict", folder / "probe", images, "--output", folder / "said.csv"]
    for arguments, code in (([*probe, "--run-dir", folder / "probe"], 0), (predict, 1)):
        if trouble := wrong(ground.commands.run(arguments), code):
            return f"{arguments[0]}: {trouble}"
    return "" if _rows(folder / "said.csv") == COUNT else "predict leaves images out"


def _shards(ground: Ground, images: Path, folder: Path) -> str:
    """Every image is in the shards, where it was."""
    packed = ["data", "shard", images, folder / "shards", "--shards", "3"]
    check, check_shards = ["data", "check", images], ["data", "check", folder / "shards"]
    for arguments, code in ((packed, 0), (check_shards, 1), (check, 1)):
        ended = ground.commands.run(arguments)
        if trouble := wrong(ended, code):
            return f"{arguments[1]}: {trouble}"
        if "\x1b[31m" in ended.stdout + ended.stderr:
            return f"{arguments[1]} writes a name's control characters to the terminal"
    before, after = ClassFolders(images), open_shards(str(folder / "shards"))
    for index in range(len(before)):
        if (before.read(index), before.label(index)) != (after.read(index), after.label(index)):
            return f"image {index} is another one in the shards"
    return ""


def _rows(path: Path) -> int:
    """Of a CSV file, without its heading."""
    with path.open(newline="", encoding="utf-8") as file:
        return len(list(csv.reader(file))) - 1
