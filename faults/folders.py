"""Folders as they should not be: shared by two runs, read-only, out of time, crowded, with odd names, full of links."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.feature_file import read_feature_file
from faults.commands import Commands, Ended
from faults.disk_full import small_disk, small_writers
from faults.isolated import isolated
from faults.jobs import (
    CLASSIFIER,
    PRETRAIN,
    Job,
    Made,
    benchmark,
    classifier,
    differences,
    export,
    features,
    make,
    overrides,
    pretrain,
    shard,
)
from faults.kills import undisturbed
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.sources import ClassFolders, read_image
from swav_tf.data.tfrecord import open_shards
from swav_tf.errors import DataError, SwavError

CROWD = 100_000
DAY_S = 86_400.0

# Names that file systems allow: bytes that are no UTF-8, what shells, CSV files and terminals trip over.
ODD_NAMES = (
    b"with space.png", b" leading.png", b"trailing .png", b"new\nline.png", b"tab\there.png", b"carriage\rreturn.png",
    b"latin-\xe9\xff.png", b"-dash.png", b"--help.png", b"quote\".png", b"apostrophe'.png", b"comma,semicolon;.png",
    b"back\\slash.png", b"star*question?.png", b"[bracket].png", b"$(touch canary).png", b"`touch canary`.png",
    b"\x1b[31mred.png", b"%s%n.png", b"{brace}.png", "ü\u202eright to left.png".encode(), "\U0001f600.png".encode(),
    b"CON.png", b"upper.PNG", b"\x7fdelete.png", b"=1+1.png", b"n" * 240 + b".png", b"#hash.png", b"~tilde.png",
)  # fmt: skip
ODD_CLASSES = (b"cl\xe9ss", b"class\nof two lines", b" class, with 'quotes'")


class Ground:
    """What the trials share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.commands = Commands(plan.folder)
        self.made: Made = make(self.commands, plan.folder / "made")

    def expected(self, job: Job) -> dict[str, object]:
        """The result of a job that nothing disturbs."""
        folder = self.plan.folder / "undisturbed"
        return undisturbed(self.commands, job, folder).result


def run(plan: Plan) -> Iterator[Trial]:
    """The trials in turn; a number beyond the last begins them again with other random numbers."""
    ground = Ground(plan)
    trials = list(_trials(ground))
    for number in plan.numbers:
        what, trial = trials[number % len(trials)]
        folder = plan.folder / f"folder-{number}"
        folder.mkdir()
        outcome, finding = trial(folder, plan.draw(number))
        yield Trial(number, what, "broken" if finding else outcome, finding=shortened(finding, 1500))
        shutil.rmtree(folder, ignore_errors=True)


_CANNOT_WRITE = ("ead-only file system", "must be in a folder that can be written")

Body = Callable[[Path, np.random.Generator], tuple[str, str]]


def _trials(ground: Ground) -> Iterator[tuple[str, Body]]:
    made = ground.made
    twice = (pretrain(), classifier("probe", made.run), features(made.run, ".npy"), shard(made.images))
    for job in (*twice, export(made.run, "fp32")):
        yield f"two at once in one folder: {job.name}", partial(_two_at_once, ground, job)
    writers = (
        pretrain(), classifier("finetune", made.run), features(made.run, ".npz"), shard(made.images),
        export(made.run, "fp32"), benchmark(made.exported),
        *(job for job in small_writers(made, made.run) if job.name.startswith(("weights", "crops", "verify"))),
    )  # fmt: skip
    yield "read-only folder for what is written", lambda f, _: _read_only(ground, writers, f)
    yield "read-only images and model", lambda f, _: _read_only_inputs(ground, f)
    for job in (pretrain(), features(made.run, ".npz"), shard(made.images)):
        yield f"clock jumps, killed between: {job.name}", partial(_clock, ground, job)
    yield f"{CROWD:,} files in a folder", lambda f, _: _crowd(ground, f)
    yield "odd file names", lambda f, _: _odd_names(ground, f)
    yield "links", lambda f, _: _links(ground, f)
    yield "a shard index that names files elsewhere", lambda f, _: _index_elsewhere(ground, f)
    yield "damaged shards and index", lambda f, d: _damaged_shards(ground, f, d)


# === Two at once, no writing, other times ===


def _two_at_once(ground: Ground, job: Job, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    expected = ground.expected(job)
    first = ground.commands.start(job.arguments(folder))
    time.sleep(float(draw.choice((0.0, 0.01, 0.1, 0.5))))
    second = ground.commands.start(job.arguments(folder))
    ends = [first.wait(), second.wait()]
    for ended in ends:
        if ended.disgrace:
            return "", ended.disgrace
        if ended.code not in (0, 2) or (ended.code == 2 and "Only one process may write" not in ended.stderr):
            return "", f"one must refuse in words: {ended}"
    if all(ended.code for ended in ends):
        return "", f"both gave way: {ends}"
    different = differences(expected, job.result(folder)) or job.whole(folder)
    return (
        "one refused" if any(ended.code for ended in ends) else "both done"
    ) + ", the same result", different


@contextmanager
def _read_only_copy(source: Path | None, folder: Path) -> Iterator[Path]:
    """A disk that cannot be written, empty or with a copy of a folder."""
    with small_disk(folder):
        inside = folder / "inside"
        inside.mkdir() if source is None else shutil.copytree(source, inside)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield inside


def _read_only(ground: Ground, jobs: tuple[Job, ...], folder: Path) -> tuple[str, str]:
    for number, job in enumerate(jobs):
        if job.name == "verify":
            source = folder / "verify"
            source.mkdir()
            job.arguments(source)  # copies what it reads
        try:
            with _read_only_copy(source if job.name == "verify" else None, folder / str(number)) as inside:
                ended = ground.commands.run(job.arguments(inside))
        except PermissionError as error:
            return f"skipped: a tmpfs cannot be mounted ({error})", ""
        if (
            ended.disgrace
            or ended.code not in (1, 2)
            or not any(words in ended.stderr for words in _CANNOT_WRITE)
        ):
            return "", f"{job.name}: {ended.disgrace or ended}"
    return "refused in words", ""


def _read_only_inputs(ground: Ground, folder: Path) -> tuple[str, str]:
    (folder / "source").mkdir()
    shutil.copytree(ground.made.run, folder / "source" / "run")
    shutil.copytree(ground.made.images, folder / "source" / "images")
    try:
        with _read_only_copy(folder / "source", folder / "disk") as inside:
            data = ("-o", "data.kind=class_folders", "-o", f"data.validation_path={inside / 'images'}")
            for arguments in (
                ["features", inside / "images", "--kind", "images", "--model", inside / "run", "-o", folder / "x.npz"],
                ["export", inside / "run", "-o", folder / "exported"],
                ["data", "shard", inside / "images", folder / "shards"],
                ["probe", inside / "images", inside / "images", "--model", inside / "run", "-c", "probe_digits",
                 *data[:2], "-o", "data.validation_split=null", "-o", "train.epochs=1", "--run-dir", folder / "probe"],
            ):  # fmt: skip
                ended = ground.commands.run(arguments)
                if ended.disgrace or ended.code:
                    return "", f"{arguments[0]}: {ended.disgrace or ended}"
    except PermissionError as error:
        return f"skipped: a tmpfs cannot be mounted ({error})", ""
    return "read all the same", ""


def _clock(ground: Ground, job: Job, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    expected = ground.expected(job)
    jumps = [float(days) * DAY_S for days in draw.choice((-4000.0, -1.0, -0.01, 0.01, 1.0, 4000.0), 3)]

    def another_time(offset: float) -> Callable[[], None]:
        right, right_ns, calls = time.time, time.time_ns, [0]

        def wrong() -> float:
            calls[0] += 1  # and it jumps back in the middle, as when a clock is set
            return right() + (offset if calls[0] < 50 else -offset)

        def install() -> None:
            time.time = wrong
            time.time_ns = lambda: right_ns() + int(offset * 1e9)

        return install

    for offset in jumps[:2]:
        running = ground.commands.start(job.arguments(folder), before=another_time(offset))
        end = time.monotonic() + 0.5 + float(draw.random()) * 2
        while time.monotonic() < end and not running.has_ended():
            time.sleep(0.01)
        if not running.has_ended():
            running.kill()
        ended = running.wait()
        if ended.code != -9 and (ended.disgrace or ended.code):
            return "", f"clock off by {offset:.0f} s: {ended.disgrace or ended}"
        for path in folder.rglob("*"):
            then = time.time() + float(draw.choice((-1e9, 1e9)))
            os.utime(path, (then, then))
    ended = ground.commands.start(job.arguments(folder), before=another_time(jumps[2])).wait()
    if ended.disgrace or ended.code:
        return "", f"clock off by {jumps}: {ended.disgrace or ended}"
    return "the same result", differences(expected, job.result(folder))


# === What is in a folder of images ===


def _features_of(
    ground: Ground, images: Path, output: Path, *more: str
) -> tuple[Ended, tuple[list[str], np.ndarray]]:
    """Names and features of all images of a folder."""
    ended = ground.commands.run(
        ["features", images, "--kind", "class_folders", "--model", ground.made.run, "-o", output, *more],
        limit_s=600,
    )

    def read(path: Path) -> tuple[list[str], np.ndarray]:
        rows = read_feature_file(path).rows
        return list(rows.names), np.array(rows.features)

    [answer] = isolated(read, [output], limit_s=60)
    return ended, answer.value or ([], np.empty((0, 0)))


def _crowd(ground: Ground, folder: Path) -> tuple[str, str]:
    first = folder / "first"
    first.mkdir()
    draw = np.random.default_rng(4)
    for number in range(100):
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(first / f"{number}.png")
    crowd = folder / "images" / "all"
    crowd.mkdir(parents=True)
    for number in range(CROWD):
        os.link(first / f"{number % 100}.png", crowd / f"{number:06d}.png")
    ended, (names, found) = _features_of(ground, crowd.parent, folder / "x.npz", "--batch-size", "512")
    if ended.disgrace or ended.code:
        return "", ended.disgrace or str(ended)
    if names != [f"all/{number:06d}.png" for number in range(CROWD)]:
        return "", f"{len(names)} rows, not in order"
    apart = np.abs(found[100:] - found[:-100]).max()
    if apart > 1e-4:
        return "", f"features of the same image differ by {apart}"
    settings = (*PRETRAIN, "data.kind=class_folders", "data.validation_split=null", "monitor.knn_every_epochs=0",
                "train.batch_size=20000", "train.epochs=1", "method.queue.length=0", "data.split=train",
                "crops=[{count: 2, size: 8, scale: [0.4, 1.0]}]", "train.accumulation_steps=20",
                "method.prototypes_frozen_steps=1")  # fmt: skip
    ended = ground.commands.run(
        ["pretrain", crowd.parent, "-c", "demo", *overrides(settings), "--run-dir", folder / "run"],
        limit_s=600,
    )
    if ended.disgrace or ended.code:
        return "", ended.disgrace or str(ended)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return f"features and a training epoch of {CROWD:,}", "" if summary["images"] == CROWD else str(summary)


def odd_folder(folder: Path) -> Path:
    """Class folders and files of odd names, one file of each class damaged."""
    draw = np.random.default_rng(6)
    for class_name in ODD_CLASSES:
        inside = os.path.join(os.fsencode(folder), class_name)
        os.makedirs(inside)
        for number, name in enumerate(ODD_NAMES):
            path = os.path.join(inside, name)
            Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
                Path(os.fsdecode(path)), "PNG"
            )
            if number == 3:
                with open(path, "r+b") as file:
                    file.truncate(100)
    return folder


def _without_damage(images: Path, copy: Path) -> Path:
    """The same folder; classifiers take no damaged images to validate on."""
    shutil.copytree(images, copy)
    for path in copy.rglob("*"):
        if path.is_file() and path.stat().st_size == 100:
            path.unlink()
    return copy


def _odd_names(ground: Ground, folder: Path) -> tuple[str, str]:
    images = odd_folder(folder / "odd images\n")
    count = len(ODD_CLASSES) * len(ODD_NAMES)
    bad = len(ODD_CLASSES)
    outputs: list[np.ndarray] = []
    for ending in (".npz", ".npy", ".parquet"):
        ended, (names, found) = _features_of(ground, images, folder / f"x{ending}", "--max-bad-share", "0.1")
        if ended.disgrace or ended.code:
            return "", ended.disgrace or str(ended)
        if len(names) != count - bad or len(set(names)) != count - bad:
            return "", f"{ending}: {len(set(names))} names of {len(names)} rows"
        if any("\n" in name or "\x1b" in name for name in names):
            return "", f"{ending}: names with control characters"
        outputs.append(found)
        with (folder / f"x{ending}.unreadable.csv").open(newline="") as file:
            if len(list(csv.reader(file))) != bad + 1:
                return "", f"{ending}: the list of what is unreadable does not have {bad} lines"
    if not all(np.array_equal(outputs[0], found) for found in outputs):
        return "", "the three formats hold other features"
    data = ("data.kind=class_folders", "data.validation_split=null", "data.max_bad_share=0.1", "train.batch_size=16",
            "monitor.knn_every_epochs=0")  # fmt: skip
    job = pretrain((images,), data)
    expected = ground.expected(job)
    running = ground.commands.start(job.arguments(folder))
    while not (folder / "run" / "metrics.jsonl").exists() and not running.has_ended():
        time.sleep(0.01)
    running.kill()
    running.wait()
    ended = ground.commands.run(job.arguments(folder))
    if ended.disgrace or ended.code:
        return "", ended.disgrace or str(ended)
    if different := differences(expected, job.result(folder)):
        return "", different
    if expected["summary"]["bad_images"] != bad:  # type: ignore[index]
        return "", f"{expected['summary']} of {bad} bad images"
    settings = (*CLASSIFIER, "data.kind=class_folders", "data.validation_split=null", "train.batch_size=16",
                "data.max_bad_share=0.1")  # fmt: skip
    clean = _without_damage(images, folder / "whole")
    probe = ["probe", clean, clean, "--model", ground.made.run, "-c", "probe_digits", *overrides(settings)]
    predict = ["predict", folder / "probe", images, "-o", folder / "said.csv"]
    for arguments, code in (([*probe, "--run-dir", folder / "probe"], 0), (predict, 1)):
        ended = ground.commands.run(arguments)
        if ended.disgrace or ended.code != code:
            return "", f"{arguments[0]}: {ended.disgrace or ended}"
    with (folder / "said.csv").open(newline="", encoding="utf-8") as file:
        if len(list(csv.reader(file))) != count + 1:
            return "", "predict leaves images out"
    packed = ["data", "shard", images, folder / "shards", "--shards", "3"]
    for arguments, code in (
        (packed, 0),
        (["data", "check", folder / "shards"], 1),
        (["data", "check", images], 1),
    ):
        ended = ground.commands.run(arguments)
        if ended.disgrace or ended.code != code:
            return "", f"{arguments[1]}: {ended.disgrace or ended}"
        if "\x1b[31m" in ended.stdout + ended.stderr:
            return "", f"{arguments[1]} writes a name's control characters to the terminal"
    before, after = ClassFolders(images), open_shards(str(folder / "shards"))
    for index in range(len(before)):
        if (before.read(index), before.label(index)) != (after.read(index), after.label(index)):
            return "", f"image {index} is another one in the shards"
    return "features, a killed run, shards: names kept apart", ""


def _links(ground: Ground, folder: Path) -> tuple[str, str]:
    """Links to images are images; loops end; links to nothing and to what is no file are left out or told."""
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
    ended, _ = _features_of(ground, images, folder / "x.npz")
    if ended.disgrace or ended.code != 1 or itself.name not in ended.stderr:
        return "", f"a link to itself must be told: {ended.disgrace or ended}"
    itself.unlink()
    ended, (names, _) = _features_of(ground, images, folder / "x.npz")
    if ended.disgrace or ended.code:
        return "", ended.disgrace or str(ended)
    wanted = sorted([f"{place}/{number}.png" for place in "ab" for number in range(5)] + ["a/to a file.png"])
    return "followed once, loops end", "" if sorted(names) == wanted else f"features of {names}"


# === Shards ===


def _index_elsewhere(ground: Ground, folder: Path) -> tuple[str, str]:
    secret = folder / "secret.tfrecord"
    job = shard(ground.made.images)
    whole = folder / "whole"
    whole.mkdir()
    ground.commands.must_run(job.arguments(whole))
    index = json.loads((whole / "shards" / "index.json").read_text())
    shutil.copy(whole / "shards" / index["shards"][0]["name"], secret)
    for number, name in enumerate(
        (
            "../secret.tfrecord",
            str(secret),
            "sub/../../secret.tfrecord",
            "..",
            "",
            "link.tfrecord",
            "a\0b",
            "/dev/zero",
        )
    ):
        copy = folder / f"copy-{number}"
        shutil.copytree(whole / "shards", copy)
        (copy / "link.tfrecord").symlink_to(secret)
        index["shards"][0]["name"] = name
        (copy / "index.json").write_text(json.dumps(index))
        for arguments in (
            ["data", "check", copy],
            ["pretrain", copy, "-c", "demo", *overrides((*PRETRAIN, "data.kind=tfrecord", "data.validation_split=null",
             "monitor.knn_every_epochs=0")), "--run-dir", folder / "run"],
        ):  # fmt: skip
            ended = ground.commands.run(arguments)
            if ended.disgrace or ended.code not in (1, 2):
                return "", f"{name!r}, {arguments[0]}: {ended.disgrace or ended}"
    return "refused in words", ""


def _damaged_shards(ground: Ground, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    """200 files of a packing damaged, one at a time: every image is as it was, or an error."""
    ground.commands.must_run(shard(ground.made.images).arguments(folder))
    whole = folder / "shards"
    (whole / ".lock").unlink(missing_ok=True)
    source = open_shards(str(whole))
    right = [
        (source.read(index), source.label(index), source.image_name(index)) for index in range(len(source))
    ]
    names = [path.name for path in whole.iterdir() if path.name.startswith("index")] * 8
    names += [path.name for path in sorted(whole.iterdir())]
    damages = []
    for _ in range(200):
        name = names[int(draw.integers(len(names)))]
        damages.append((name, *mutated((whole / name).read_bytes(), draw)))

    def outcome(damage: tuple[str, bytes, str]) -> str:
        name, data, _ = damage
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in whole.iterdir():
            if path.name != name:
                os.link(path, copy / path.name)
        (copy / name).write_bytes(data)
        try:
            found = open_shards(str(copy))
        except SwavError:
            return ""
        if len(found) != len(right):
            return f"{len(found)} images"
        for index, (bytes_, label, image_name) in enumerate(right):
            try:
                read_image(found, index)
            except (UndecodableImage, OSError, DataError):
                continue
            if (found.read(index), found.label(index), found.image_name(index)) != (
                bytes_,
                label,
                image_name,
            ):
                return f"image {index} is another one"
        return ""

    for answer in isolated(outcome, damages):
        if answer.broken or answer.value:
            return "", f"{answer.argument[0]}, {answer.argument[2]}: {answer.broken or answer.value}"
    return "200 times refused or the same images", ""
