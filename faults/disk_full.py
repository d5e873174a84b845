"""A full disk under every writer: told in words, nothing whole is damaged, and with room the same command goes on.

The disk is a small tmpfs, for which one must be root; elsewhere these trials are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faults.commands import Commands
from faults.jobs import (
    Job,
    Made,
    benchmark,
    classifier,
    differences,
    export,
    features,
    files_of,
    files_trouble,
    make,
    pretrain,
    shard,
)
from faults.kills import Course
from faults.trial import Plan, Trial, shortened

ROOM = 256 * 2**20
PAGE = 4096


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A disk of its own at a folder; call with the bytes that shall be free on it.

    Raises:
        PermissionError: it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode().strip())

    def leave(free: int) -> None:
        size = max(PAGE, _used(folder) + free // PAGE * PAGE)  # 0 would mean no limit
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True, capture_output=True)

    try:
        yield leave
    finally:
        subprocess.run(["umount", folder], check=False)


@dataclass(frozen=True)
class Writer:
    """A command with one output, made of other files."""

    name: str
    words: Callable[[Path], list[str | Path]]  # for the folder of its output
    replaces: bool = True

    def job(self) -> Job:
        """As those that can be broken off."""
        return Job(self.name, self.words, "*", files_of, files_trouble, replaces=self.replaces)


def small_writers(made: Made, found: Path) -> list[Job]:
    """Commands that write one thing at their end; `found` is a feature file."""
    run, exported = made.run, made.exported
    writers = (
        Writer(
            "weights export .safetensors",
            lambda f: ["weights", "export", run, "-o", f / "w.safetensors"],
            replaces=False,
        ),
        Writer(
            "weights import, a run", lambda f: ["weights", "import", run, "--to", f / "run"], replaces=False
        ),
        Writer(
            "weights import, a file",
            lambda f: ["weights", "import", run, "--to", f / "w.safetensors"],
            replaces=False,
        ),
        Writer("verify", lambda f: ["verify", _copied(exported, f / "exported")]),
        Writer("crops", lambda f: ["crops", "-c", "demo", "--output", f / "crops.png"]),
        Writer("plot", lambda f: ["plot", found, "-o", f / "map.png", "--method", "pca"]),
        Writer("clusters", lambda f: ["clusters", "--model", run, "-o", f / "clusters"]),
        Writer(
            "predict",
            lambda f: ["predict", run.parent / "probed" / "run", run.parent / "images", "-o", f / "said.csv"],
        ),
        Writer("data check", lambda f: ["data", "check", made.images, "--sheet", f / "sheet.png"]),
    )
    return [writer.job() for writer in writers]


def _copied(source: Path, target: Path) -> Path:
    """What a command writes into beside what it reads."""
    if not target.exists():
        shutil.copytree(source, target)
    return target


def run(plan: Plan) -> Iterator[Trial]:
    """Each trial is one job on a disk that gets full somewhere on its way."""
    try:
        with small_disk(plan.folder / "try"):
            pass
    except PermissionError as error:
        yield Trial(plan.numbers[0], "full disk", f"skipped: a tmpfs cannot be mounted ({error})", faults=0)
        return
    commands = Commands(plan.folder)
    made, found = make(commands, plan.folder / "made"), plan.folder / "digits.npz"
    commands.must_run(classifier("probe", made.run).arguments(made.run.parent / "probed"))
    commands.must_run(["features", "digits", "--split", "test", "--model", made.run, "-o", found])
    jobs = [
        pretrain(),
        pretrain(settings=("monitor.tensorboard=false",)),
        classifier("probe", made.run),
        classifier("finetune", made.run),
        classifier("probe", made.run, cached=True),
        shard(made.images),
        features(made.run, ".npz"),
        features(made.run, ".npy"),
        features(made.run, ".parquet"),
        export(made.run, "fp32"),
        benchmark(made.exported),
        *small_writers(made, found),
    ]
    courses: dict[int, tuple[Course, int]] = {}
    for number in plan.numbers:
        which = number % len(jobs)
        if which not in courses:
            courses[which] = _measured(commands, jobs[which], plan.folder / "measured")
        course, used = courses[which]
        yield _filled(
            commands, jobs[which], course, used, plan.folder / f"disk-{number}", number, plan.draw(number)
        )


def _measured(commands: Commands, job: Job, folder: Path) -> tuple[Course, int]:
    """What comes of it, and how many bytes it needs at its end."""
    with small_disk(folder):
        (folder / "x").mkdir()
        arguments = job.arguments(folder / "x")  # may copy what it reads
        before = _used(folder)
        ended = commands.must_run(arguments)
        return Course(job.result(folder / "x"), 0.0, ended.seconds), _used(folder) - before


def _used(disk: Path) -> int:
    """Bytes."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _filled(
    commands: Commands,
    job: Job,
    course: Course,
    used: int,
    disk: Path,
    number: int,
    draw: np.random.Generator,
) -> Trial:
    free = int(draw.uniform(0, 0.9) * max(used, PAGE))
    told: list[str] = []
    with small_disk(disk) as leave:
        folder = disk / "x"
        folder.mkdir()
        arguments = job.arguments(folder)  # may copy what is read: there was room for that
        if replaced := job.replaces and bool(draw.random() < 0.5):
            commands.must_run(arguments)
        leave(free)
        ended = commands.run(arguments)
        told.append(f"{free:,} bytes free: code {ended.code}: {ended.stderr.strip()[-300:]}")
        if ended.disgrace:
            return Trial(
                number, job.name, "broken", finding=shortened(f"{free:,} bytes free: {ended.disgrace}", 1200)
            )
        if ended.code not in (0, 1, 2) or (ended.code and not _says_why(ended.stderr)):
            return Trial(number, job.name, "broken", finding=shortened(f"does not say why: {told}"))
        if trouble := job.whole(folder):
            return Trial(number, job.name, "broken", finding=shortened(f"{told}, half-written: {trouble}"))
        if replaced and ended.code and (different := differences(course.result, job.result(folder))):
            return Trial(
                number, job.name, "broken", finding=shortened(f"{told}, what was there: {different}")
            )
        had_room = ended.code == 0
        leave(ROOM)
        if not had_room:
            ended = commands.run(job.arguments(folder))
            if ended.disgrace or ended.code:
                finding = f"{told}; with room again: {ended.disgrace or ended}"
                return Trial(number, job.name, "broken", finding=shortened(finding, 1200))
        different = differences(course.result, job.result(folder))
        if different:
            return Trial(number, job.name, "broken", finding=shortened(f"{told}, other result: {different}"))
        left = [str(path.relative_to(folder)) for path in folder.rglob("*") if ".part" in path.name]
        if left:
            return Trial(number, job.name, "broken", finding=f"{told}; left behind: {left}")
    return Trial(number, job.name, "had room enough" if had_room else "told, then the same result")


def _says_why(message: str) -> bool:
    return any(words in message for words in ("No space left", "space", "disk"))
