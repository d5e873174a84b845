"""A full disk under every writer: told in words, nothing whole is damaged, and with room the same command goes on.

The disk is a small tmpfs, on which temporary files lie too; elsewhere these trials are skipped, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from faults.commands import Commands
from faults.jobs import Job, benchmark, classifier, export, features, make, pretrain, shard
from faults.kills import Course
from faults.outcomes import differences
from faults.small_disk import PAGE, ROOM, SmallDisk, small_disk
from faults.trial import Plan, Trial, shortened
from faults.writers import Inputs, make_inputs, small_writers, to_stdout

FIRST_PAGES = 8  # where small files and the beginnings of large ones are written


def run(plan: Plan) -> Iterator[Trial]:
    """Each trial is one job on a disk that gets full somewhere on its way."""
    try:
        with small_disk(plan.folder / "try"):
            pass
    except PermissionError as error:
        yield Trial(plan.numbers[0], "full disk", f"skipped: a tmpfs cannot be mounted ({error})", faults=0)
        return
    commands = Commands(plan.folder)
    made = make(commands, plan.folder / "made")
    jobs = all_jobs(make_inputs(commands, made, plan.folder / "inputs"))
    courses: dict[int, tuple[Course, int]] = {}
    for number in plan.numbers:
        which = number % len(jobs)
        if which not in courses:
            courses[which] = _measured(commands, jobs[which], plan.folder / "measured")
        course, used = courses[which]
        filled = _Filled(commands, jobs[which], course, plan.draw(number))
        yield filled.trial(number, used, plan.folder / f"disk-{number}")


def all_jobs(inputs: Inputs) -> list[Job]:
    """Every command that writes, some in several ways."""
    made = inputs.made
    damaged = ("data.kind=class_folders", "data.validation_split=null", "data.max_bad_share=0.1",
               "train.batch_size=32", "method.queue.length=64", "monitor.knn_every_epochs=0")  # fmt: skip
    return [
        pretrain(),
        pretrain(settings=("monitor.tensorboard=false",)),
        replace(
            pretrain((inputs.damaged,), damaged, weights=made.run), name="pretrain --weights, images damaged"
        ),
        classifier("probe", made.run),
        classifier("finetune", made.run),
        classifier("probe", made.run, cached=True),
        shard(made.images),
        features(made.run, ".npz"),
        features(made.run, ".npy"),
        features(made.run, ".parquet"),
        export(made.run, "fp32"),
        benchmark(made.exported),
        *small_writers(inputs),
        *to_stdout(inputs),
    ]


def _measured(commands: Commands, job: Job, folder: Path) -> tuple[Course, int]:
    """What comes of it, and how many bytes it needs at its end."""
    with small_disk(folder) as disk:
        (folder / "x").mkdir()
        job.arguments(folder / "x")  # may copy what it reads
        before = disk.used
        ended = job.start(commands, folder / "x").wait()
        if ended.code != 0:
            raise RuntimeError(f"{job.name} must succeed undisturbed: {ended}")
        return Course(job.result(folder / "x"), 0.0, ended.seconds), disk.used - before


class _Filled:
    """A job on a disk that has not enough room, and then has."""

    def __init__(self, commands: Commands, job: Job, course: Course, draw: np.random.Generator) -> None:
        self.commands, self.job, self.course, self.draw = commands, job, course, draw
        self.told = ""

    def trial(self, number: int, used: int, folder: Path) -> Trial:
        """With room for a part of the bytes that are used at the end."""
        outcome, finding = "", ""
        with small_disk(folder) as disk:
            outcome, finding = self._judged(disk, used)
        told = f"{self.told}; " if self.told else ""
        finding = shortened(told + finding, 1200) if finding else ""
        return Trial(number, self.job.name, "broken" if finding else outcome, finding=finding)

    def _judged(self, disk: SmallDisk, used: int) -> tuple[str, str]:
        """The outcome, and what is wrong."""
        job, folder, temporary = self.job, disk.folder / "x", disk.folder / "temporary"
        folder.mkdir()
        temporary.mkdir()
        job.arguments(folder)  # may copy what is read: there was room for that
        if replaced := job.replaces and bool(self.draw.random() < 0.5):
            job.start(self.commands, folder).wait()
        free = int(self.draw.uniform(0, 0.9) * max(used, PAGE))
        if self.draw.random() < 0.5:
            free = min(free, PAGE * int(self.draw.integers(FIRST_PAGES)))
        disk.leave(free)
        ended = job.start(self.commands, folder, temporary=temporary).wait()
        self.told = f"{free:,} bytes free: code {ended.code}: {ended.stderr.strip()[-300:]}"
        if ended.disgrace:
            return "", ended.disgrace
        if ended.code not in (0, 1, 2) or (ended.code and not _says_why(ended.stderr + ended.stdout)):
            return "", "does not say why"
        if trouble := job.whole(folder):
            return "", f"half-written: {trouble}"
        if replaced and ended.code and (different := differences(self.course.result, job.result(folder))):
            return "", f"what was there: {different}"
        had_room = ended.code == 0
        disk.leave(ROOM)
        if not had_room:
            ended = job.start(self.commands, folder, temporary=temporary).wait()
            if ended.disgrace or ended.code:
                return "", f"with room again: {ended.disgrace or ended}"
        if different := differences(self.course.result, job.result(folder)):
            return "", f"other result: {different}"
        left = [path for path in folder.rglob("*") if ".part" in path.name]
        left += temporary.glob("swav-tf-*")  # TensorFlow and ONNX Runtime leave theirs
        if left:
            return "", f"left behind: {[str(path.relative_to(disk.folder)) for path in left]}"
        return ("had room enough" if had_room else "told, then the same result"), ""


def _says_why(message: str) -> bool:
    return any(words in message for words in ("No space left", "space", "disk"))
