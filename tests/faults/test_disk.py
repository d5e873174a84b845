"""A full or read-only disk: every command that writes says so, damages nothing, and succeeds once there is room."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest

from cli.main import swav_tf
from tests.faults import jobs
from tests.faults.conftest import Tally
from tests.faults.disk import PAGE, ROOM, Disk, small_disk
from tests.faults.harness import Command, Ended, rounds, run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
CANNOT_WRITE = ("ead-only file system", "must be in a writable folder")
# Commands that write nothing but their output on the terminal.
ONLY_PRINT = {
    "compare", "config list", "config settings", "config check", "config show", "doctor", "knn", "plan", "profile",
    "weights show",
}  # fmt: skip


@pytest.mark.parametrize("name", [*jobs.LONG_JOBS, *jobs.WRITERS])
def test_full_disk(name: str, inputs: jobs.Inputs, folder: Path, random: Random, tally: Tally) -> None:
    job = find_job(name, inputs)
    with small_disk(folder / "measured") as disk:
        (disk.folder / "x").mkdir()
        job.words(disk.folder / "x")  # may copy what it reads
        before = disk.used
        start(job, disk.folder / "x")
        used, expected = disk.used - before, job.result(disk.folder / "x")
    for number in rounds(2):
        with small_disk(folder / str(number)) as disk:
            free = int(random.uniform(0, 0.9) * max(used, PAGE))
            if number % 2:  # where small files and the beginnings of large ones are written
                free = min(free, PAGE * random.randrange(8))
            replaces = job.replaces and random.random() < 0.5
            tally(f"full disk: {name}", fill(job, disk, free, expected, replaces))


def fill(job: jobs.Job, disk: Disk, free: int, expected: dict[str, Any], replaces: bool) -> str:
    """Run a job without enough room and then again with it."""
    folder, temporary = disk.folder / "x", disk.folder / "temporary"
    folder.mkdir()
    temporary.mkdir()
    job.words(folder)  # there was room for what it copies
    if replaces:
        start(job, folder)
    disk.leave(free)
    ended = start(job, folder, temporary, may_fail=True)
    if ended.code:
        assert any(word in ended.err + ended.out for word in ("space", "disk")), ended
    job.check(folder)
    if replaces and ended.code:
        assert job.result(folder) == expected, "the earlier result is damaged"
    disk.leave(ROOM)
    if ended.code:
        start(job, folder, temporary)
    assert job.result(folder) == expected
    assert not [path for path in folder.rglob("*") if ".part" in path.name]
    assert not list(temporary.glob("swav-tf-*"))  # TensorFlow and ONNX Runtime leave theirs
    return "reported, then the same result" if ended.code else "room enough"


def start(job: jobs.Job, folder: Path, temporary: Path | None = None, *, may_fail: bool = False) -> Ended:
    environment = {} if temporary is None else {"TMPDIR": str(temporary)}
    ended = Command(*job.words(folder), environment=environment, before=job.before).wait()
    ended.check()
    assert ended.code in ((0, 1, 2) if may_fail else (0,)), ended
    return ended


def find_job(name: str, inputs: jobs.Inputs) -> jobs.Job:
    for job in (*jobs.long_jobs(inputs), *jobs.writers(inputs)):
        if job.name == name:
            return job
    pytest.skip("TensorRT-RTX is not installed")


@pytest.mark.parametrize("name", [*jobs.LONG_JOBS, *jobs.WRITERS])
def test_read_only_output(name: str, inputs: jobs.Inputs, folder: Path, tally: Tally) -> None:
    job = find_job(name, inputs)
    with small_disk(folder) as disk:
        (folder / "x").mkdir()
        job.words(folder / "x")
        disk.make_read_only()
        ended = start(job, folder / "x", may_fail=True)
    assert ended.code in (1, 2)
    assert any(words in ended.err for words in CANNOT_WRITE), ended
    tally("read-only disk for outputs", "refused")


def test_read_only_inputs(inputs: jobs.Inputs, folder: Path, tally: Tally) -> None:
    with small_disk(folder / "disk") as disk:
        trained = shutil.copytree(inputs.run, disk.folder / "run")
        images = shutil.copytree(inputs.images, disk.folder / "images")
        disk.make_read_only()
        settings = jobs.overrides("data.kind=class_folders", "data.validation_split=null", "train.epochs=1")
        for words in (
            ["features", images, "--model", trained, "--kind", "images", "--output", folder / "x.npz"],
            ["export", trained, "--output", folder / "exported"],
            ["data", "shard", images, folder / "shards"],
            [
                "probe",
                images,
                images,
                "--model",
                trained,
                "-c",
                "probe_digits",
                *settings,
                "--run-dir",
                folder / "p",
            ],
        ):
            run(*words)
            tally("read-only disk for inputs", "read")


# Bug caught: half of the output in the file, and exit code 0.
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_under_stdout(unbuffered: str, tally: Tally) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "cli.main", "config", "show", "demo"],
            stdout=full, stderr=subprocess.PIPE, text=True, env={"PYTHONUNBUFFERED": unbuffered}, check=False,
        )  # fmt: skip
    Ended(ended.returncode, "", ended.stderr).check()
    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    tally("full disk: stdout in a file", "reported")


# Bug caught: a new command whose output was never written on a full disk.
def test_every_command_that_writes_is_tried(inputs: jobs.Inputs, folder: Path) -> None:
    (folder / "x").mkdir()
    tried = [" ".join(map(str, job.words(folder / "x")[:2])) + " "
             for job in (*jobs.long_jobs(inputs), *jobs.writers(inputs))]  # fmt: skip
    names = set(leaves(swav_tf, click.Context(swav_tf)))
    written = {name for name in names if any(words.startswith(f"{name} ") for words in tried)}
    assert names - written == ONLY_PRINT


def leaves(group: click.Group, context: click.Context, before: str = "") -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, context, f"{before}{name} ")
        else:
            yield f"{before}{name}"
