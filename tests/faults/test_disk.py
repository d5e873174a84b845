"""A full or read-only disk: every command that writes reports it, damages nothing, and succeeds once there is room."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from cli.main import swav_tf
from tests.faults.harness import Ended, rounds, run
from tests.faults.jobs import JOBS, check, overrides

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(1800)]
ROOM, PAGE = 256 * 2**20, 4096
CANNOT_WRITE = ("ead-only file system", "must be in a writable folder")
KEEPS_LESS = {"verify"}  # it shows its result, and warns that parity.json could not be written
# Commands that write nothing but their output on the terminal.
ONLY_PRINT = {
    "config auto", "config list", "config settings", "config check", "config show", "data check", "doctor", "knn", "plan",
    "profile", "serve", "weights show",
}  # fmt: skip
writers = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(
            "tensorrt" in name and importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX"
        ))
        for name in JOBS
    ],
)  # fmt: skip


class Disk:
    """A tmpfs at a folder, with `x` for results and `temporary` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.x, self.temporary = folder, folder / "x", folder / "temporary"
        self.x.mkdir()
        self.temporary.mkdir()
        (folder / "page").write_bytes(bytes(PAGE))  # a size of 0 would mean no limit

    @property
    def used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def leave(self, free: int) -> None:
        """Resize the disk so that this many bytes are free."""
        self.remount(f"size={self.used + free // PAGE * PAGE}")

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a tmpfs at a folder; skip the test if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted; that needs root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", folder], check=False)


@writers
def test_full_disk(name, inputs, folder, random, tally):
    """Run each command without enough room, and then again with it."""
    job = JOBS[name]
    with small_disk(folder / "measured") as disk:
        job.words(disk.x, inputs)  # may copy what it reads
        before = disk.used
        job.run(disk.x, inputs)
        used, expected = disk.used - before, job.result(disk.x)
    for number in rounds(2):
        free = int(random.uniform(0, 0.9) * max(used, PAGE))
        if number % 2:  # where small files and the beginnings of large ones are written
            free = min(free, PAGE * random.randrange(1, 8))
        with small_disk(folder / str(number)) as disk:
            job.words(disk.x, inputs)
            replaces = job.replaces and random.random() < 0.5
            if replaces:
                job.run(disk.x, inputs)
            disk.leave(free)
            environment = {"TMPDIR": str(disk.temporary)}
            ended = job.start(disk.x, inputs, environment=environment).wait()
            ended.check(0, 1, 2)
            check(disk.x)
            assert not (replaces and ended.code) or job.result(disk.x) == expected, (
                "the earlier result is damaged"
            )
            disk.leave(ROOM)
            if ended.code or (name in KEEPS_LESS and "not kept" in ended.err):
                assert any(word in ended.err + ended.out for word in ("space", "disk")), ended
                job.run(disk.x, inputs, environment=environment)
            assert job.result(disk.x) == expected
            assert not list(disk.x.rglob("*.part*"))
            assert not list(disk.temporary.glob("swav-tf-*"))  # TensorFlow and ONNX Runtime leave their own
        tally(f"full disk: {name}", "reported, then the same result" if ended.code else "room enough")


@writers
def test_read_only_output(name, inputs, folder, tally):
    with small_disk(folder) as disk:
        JOBS[name].words(disk.x, inputs)
        disk.remount("ro")
        ended = JOBS[name].start(disk.x, inputs).wait()
    ended.check(*((0,) if name in KEEPS_LESS else (1, 2)))
    assert any(words in ended.err for words in CANNOT_WRITE), ended
    tally("read-only disk for outputs", "refused")


def test_read_only_inputs(inputs, folder, tally):
    with small_disk(folder / "disk") as disk:
        trained = shutil.copytree(inputs["run"], disk.folder / "run")
        images = shutil.copytree(inputs["images"], disk.folder / "images")
        disk.remount("ro")
        settings = overrides("data.kind=class_folders", "data.validation_split=null", "train.epochs=1")
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
def test_full_disk_under_stdout(unbuffered, tally):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "cli.main", "config", "show", "demo"],
            stdout=full, stderr=subprocess.PIPE, text=True, env={"PYTHONUNBUFFERED": unbuffered}, check=False,
        )  # fmt: skip
    Ended(ended.returncode, "", ended.stderr).check(1)
    assert "No space left" in ended.stderr
    tally("full disk: stdout in a file", "reported")


# Bug caught: a new command whose output was never written on a full disk.
def test_every_command_that_writes_is_tried():
    names = set(leaves(swav_tf, click.Context(swav_tf)))
    written = {name for name in names if any(job.line.startswith(f"{name} ") for job in JOBS.values())}
    assert names - written == ONLY_PRINT


def leaves(group: click.Group, context: click.Context, before: str = "") -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, context, f"{before}{name} ")
        else:
            yield f"{before}{name}"
