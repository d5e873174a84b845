"""Folders in unusual states: two writers, clock jumps, 100,000 files, odd names, damaged shards."""

import csv
import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluate.feature_file import read_feature_file
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.folders import ClassFolders
from swav_tf.data.sources import read_image
from swav_tf.data.tfrecord import open_shards
from swav_tf.plumbing.errors import DataError, SwavError
from tests.faults.harness import damage, damages, examples, randoms, rounds, run
from tests.faults.jobs import CLASSIFIER, DAMAGED_IMAGES, JOBS, PRETRAIN, overrides
from tests.faults.test_kills import Undisturbed, seen, sleep

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(1800)]
DAY_S = 86_400.0

# Bytes that are not UTF-8, and what shells, CSV files and terminals misread.
NAMES = (
    b"with space.png", b" leading.png", b"trailing .png", b"new\nline.png", b"tab\there.png", b"carriage\rreturn.png",
    b"latin-\xe9\xff.png", b"-dash.png", b"--help.png", b"quote\".png", b"apostrophe'.png", b"comma,semicolon;.png",
    b"back\\slash.png", b"star*question?.png", b"[bracket].png", b"$(touch canary).png", b"`touch canary`.png",
    b"\x1b[31mred.png", b"%s%n.png", b"{brace}.png", "ü\u202eright to left.png".encode(), "\U0001f600.png".encode(),
    b"CON.png", b"upper.PNG", b"\x7fdelete.png", b"=1+1.png", b"n" * 240 + b".png", b"#hash.png", b"~tilde.png",
)  # fmt: skip
CLASSES = (b"cl\xe9ss", b"class\nof two lines", b" class, with 'quotes'")
DAMAGED = 3  # number of the name whose files are truncated
COUNT, BAD = len(CLASSES) * len(NAMES), len(CLASSES)


@pytest.mark.parametrize("name", ["pretrain", "probe", "features .npy", "data shard", "export fp32,int8"])
def test_two_at_once(name, inputs, folder, random, tally):
    job = JOBS[name]
    expected = Undisturbed(job, folder / "undisturbed", inputs).result
    for number in rounds(2):
        shared = folder / str(number)
        shared.mkdir()
        first = job.start(shared, inputs)
        time.sleep(random.choice((0.0, 0.01, 0.1, 0.5)))
        second = job.start(shared, inputs)
        ends = [first.wait(), second.wait()]
        for ended in ends:
            ended.check()
            assert ended.code == 0 or (ended.code == 2 and "is in use: " in ended.err), ended
        assert not all(ended.code for ended in ends)
        assert job.result(shared) == expected
        tally(
            f"two at once: {name}", "one refused" if any(ended.code for ended in ends) else "both succeeded"
        )


@pytest.mark.parametrize("name", ["pretrain", "features .npz", "data shard"])
def test_clock_jumps(name, inputs, folder, random, tally):
    """Kill a job twice; each of its three processes has another clock, and all files have wrong times."""
    job = JOBS[name]
    expected = Undisturbed(job, folder / "undisturbed", inputs).result
    for number in range(3):
        clock = partial(set_clock, random.choice((-4000, -1, -0.01, 0.01, 1, 4000)) * DAY_S)
        before, remains = seen(folder, job.sign), job.remains(folder)
        command = job.start(folder, inputs, before=clock)
        if number < 2:
            while seen(folder, job.sign) == before and not command.has_ended():
                time.sleep(0.01)
            sleep(command, random.random())
            command.kill()
            command.wait()
            tally(f"clock jumps: {name}", "killed")
            for path in folder.rglob("*"):
                os.utime(path, (time.time() + random.choice((-1e9, 1e9)),) * 2)
    ended = command.wait()
    ended.check(0)
    assert remains <= job.progress(folder, ended)
    assert job.result(folder) == expected
    tally(f"clock jumps: {name}", "the same result")


def set_clock(offset_s: float) -> None:
    """Let the clock of this process jump, and back again later."""
    right, right_ns, calls = time.time, time.time_ns, [0]

    def jumping() -> float:
        calls[0] += 1
        return right() + (offset_s if calls[0] < 50 else -offset_s)

    time.time = jumping
    time.time_ns = lambda: right_ns() + int(offset_s * 1e9)


def features_of(images: Path, inputs, output: Path, *more: str) -> tuple[list[str], np.ndarray]:
    model = inputs["run"]
    run(
        "features",
        images,
        "--kind",
        "class_folders",
        "--model",
        model,
        "--output",
        output,
        *more,
        limit_s=900,
    )
    file = read_feature_file(output)
    return list(file.names), np.array(file.features)


def noise(path: Path, seed: int, side: int = 16) -> None:
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path, "PNG")


def test_100_000_files_in_a_folder(inputs, folder, tally):
    """Compute features of 100 pictures under 1,000 names each, and train on them."""
    images = folder / "images"
    (images / "all").mkdir(parents=True)
    for number in range(100):
        noise(folder / f"first/{number}.png", number, 12)
    for number in range(100_000):
        os.link(folder / f"first/{number % 100}.png", images / f"all/{number:06d}.png")
    names, found = features_of(images, inputs, folder / "x.npz", "--batch", "512")
    assert names == [f"all/{number:06d}.png" for number in range(100_000)]
    assert np.abs(found[100:] - found[:-100]).max() < 1e-4
    settings = (
        *PRETRAIN, *DAMAGED_IMAGES, "train.batch_size=20000", "train.epochs=1", "method.queue.length=0",
        "train.accumulation_steps=20", "crops=[{count: 2, size: 8, scale: [0.4, 1.0]}]",
        "method.prototypes_frozen_steps=1",
    )  # fmt: skip
    run("pretrain", images, "-c", "demo", *overrides(*settings), "--run-dir", folder / "run", limit_s=900)
    assert json.loads((folder / "run/summary.json").read_text())["images"] == 100_000
    tally("100,000 files in a folder", "features and an epoch")


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """Return class folders and files of odd names, one file of each class truncated."""
    folder = tmp_path_factory.mktemp("odd") / "odd images\n"
    for class_name in CLASSES:
        for number, name in enumerate(NAMES):
            path = folder / os.fsdecode(class_name) / os.fsdecode(name)
            noise(path, number, 24)
            if number == DAMAGED:
                os.truncate(path, 100)
    return folder


def test_features_of_odd_names(inputs, odd_images, folder, tally):
    outputs = []
    for ending in (".npz", ".npy", ".parquet"):
        names, found = features_of(odd_images, inputs, folder / f"x{ending}", "--max-bad-share", "0.1")
        assert len(names) == len(set(names)) == COUNT - BAD
        assert not any("\n" in name or "\x1b" in name for name in names)
        assert rows(folder / f"x{ending}.unreadable.csv") == BAD
        outputs.append(found)
    assert all(np.array_equal(outputs[0], found) for found in outputs)
    tally("odd names", "features", len(outputs))


def test_killed_run_on_odd_names(inputs, odd_images, folder, tally):
    settings = (*PRETRAIN, *DAMAGED_IMAGES, "train.batch_size=16")
    job, inputs = (
        replace(JOBS["pretrain --weights, damaged images"], settings=settings),
        inputs | {"damaged": odd_images},
    )
    expected = Undisturbed(job, folder / "undisturbed", inputs).result
    command = job.start(folder, inputs)
    while not (folder / "run/metrics.jsonl").exists() and not command.has_ended():
        time.sleep(0.01)
    command.kill()
    command.wait()
    job.run(folder, inputs)
    assert job.result(folder) == expected
    assert expected["run/summary.json"]["bad_images"] == BAD
    tally("odd names", "the same run after a kill")


def test_classifier_of_odd_names(inputs, odd_images, folder, tally):
    """Train on the intact images, because classifiers refuse damaged ones to validate on, and predict all."""
    intact = shutil.copytree(odd_images, folder / "intact")
    for path in [path for path in intact.rglob("*") if path.is_file() and path.stat().st_size == 100]:
        path.unlink()
    settings = overrides(
        *CLASSIFIER, "data.kind=class_folders", "data.validation_split=null", "train.batch_size=16"
    )
    options = ["--model", inputs["run"], "-c", "probe_digits", *settings, "--run-dir", folder / "probe"]
    run("probe", intact, intact, *options)
    run("predict", folder / "probe", odd_images, "--output", folder / "classes.csv", code=1)
    assert rows(folder / "classes.csv") == COUNT
    tally("odd names", "probe and predictions")


def test_shards_of_odd_names(odd_images, folder, tally):
    run("data", "shard", odd_images, folder / "shards", "--shards", "3")
    for checked in (folder / "shards", odd_images):
        ended = run("data", "check", checked, code=1)
        assert "\x1b[31m" not in ended.out + ended.err
    before, after = ClassFolders(odd_images), open_shards(str(folder / "shards"))
    for index in range(len(before)):
        assert (before.read(index), before.label(index)) == (after.read(index), after.label(index))
    tally("odd names", "shards")


def rows(path: Path) -> int:
    with path.open(newline="", encoding="utf-8") as file:
        return len(list(csv.reader(file))) - 1


@pytest.fixture(scope="module")
def shards(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    JOBS["data shard"].run(folder, inputs)
    (folder / "shards/.lock").unlink(missing_ok=True)
    return folder / "shards"


@given(of_index=st.booleans(), how=damages, random=randoms)
@examples(300)
def test_damaged_shards(shards, worker, tally, folder, of_index, how, random):
    name = random.choice(
        sorted(path.name for path in shards.iterdir() if path.name.startswith("index") == of_index)
    )
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(shards, copy, copy_function=os.link, ignore=shutil.ignore_patterns(name))
    (copy / name).write_bytes(damage((shards / name).read_bytes(), how, random))
    tally("shards, damaged", worker(read_shards, shards, copy))


def read_shards(original: Path, copy: Path) -> str:
    right = open_shards(str(original))
    try:
        found = open_shards(str(copy))
    except SwavError:
        return "refused"
    assert len(found) == len(right)
    refused_images = 0
    for index in range(len(right)):
        try:
            read_image(found, index)
        except (UndecodableImage, OSError, DataError):
            refused_images += 1
            continue
        assert (found.read(index), found.label(index)) == (right.read(index), right.label(index))
        assert found.image_name(index) == right.image_name(index)
    return "some images refused" if refused_images else "the same images"
