"""SIGKILL at random moments: nothing is half-written, and the same command resumes and ends with the same result."""

import shutil
import time
from pathlib import Path

import pytest

from tests.faults.harness import SCALE, Command, Ended, rounds
from tests.faults.jobs import JOBS, KILLED, Job, check

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(3000)]
MOMENTS = ("start", *["work"] * 5, *["writing"] * 4)


@pytest.mark.parametrize("name", KILLED)
def test_killed(name, inputs, folder, random, tally):
    job, resumed = JOBS[name], 0
    undisturbed = Undisturbed(job, folder / "undisturbed", inputs)
    for number in rounds(4):
        victim = Victim(job, undisturbed, folder / str(number), inputs, random)
        for _ in range(3 * job.kills):
            if victim.kills < job.kills:
                victim.strike()
        victim.strike(finish=True)
        tally(f"kill -9: {name}", "killed", victim.kills)
        tally(f"kill -9: {name}", "the same result")
        tally(f"kill -9: {name}", "observed: resumed", victim.resumed)
        resumed += victim.resumed
    assert resumed or not job.progress or SCALE < 1, "no kill left anything to resume from"


class Undisturbed:
    """The result of a job, and how long it takes to the first progress and from there to the end."""

    def __init__(self, job: Job, folder: Path, inputs) -> None:
        folder.mkdir()
        before, command = seen(folder, job.sign), job.start(folder, inputs)
        while seen(folder, job.sign) == before and not command.has_ended():
            time.sleep(0.001)
        progress = time.monotonic()
        command.wait().check(0)
        self.result = job.result(folder)
        self.start_s, self.work_s = progress - command.began, time.monotonic() - progress
        shutil.rmtree(folder)


class Victim:
    """A job in a folder that is killed and started again."""

    def __init__(self, job: Job, undisturbed: Undisturbed, folder: Path, inputs, random) -> None:
        self.job, self.undisturbed, self.folder, self.inputs = job, undisturbed, folder, inputs
        self.random, self.kills, self.resumed = random, 0, 0
        folder.mkdir()

    def strike(self, *, finish: bool = False) -> None:
        """Start the command and kill it; if it ends before that, check its result and start over."""
        remains, command = self.job.remains(self.folder), self.job.start(self.folder, self.inputs)
        if not finish and self._wait(command):
            command.kill()
            command.wait()
            self.kills += 1
            check(self.folder)
            return
        self._check_end(command.wait(), remains)
        if self.job.progress and not finish:
            shutil.rmtree(self.folder)
            self.folder.mkdir()

    def _check_end(self, ended: Ended, remains: set[str]) -> None:
        ended.check(0)
        assert not list(self.folder.rglob("*.part*"))
        assert self.job.result(self.folder) == self.undisturbed.result
        if remains:
            assert remains <= self.job.progress(self.folder, ended), "began from scratch"
            self.resumed += 1

    def _wait(self, command: Command) -> bool:
        """Wait for a random moment; return False if the command has ended by then."""
        random, job = self.random, self.job
        moment, start_s, work_s = random.choice(MOMENTS), self.undisturbed.start_s, self.undisturbed.work_s
        if moment == "start":
            return sleep(command, random.uniform(0, start_s))
        before = seen(self.folder, job.sign)
        while job.progress and seen(self.folder, job.sign) == before and not command.has_ended():
            time.sleep(0.0005)
        # Let some work be done that can be lost.
        sleep(command, random.random() * (work_s / job.kills if job.progress else start_s + work_s))
        while moment == "writing" and not list(self.folder.glob("**/.part*")) and not command.has_ended():
            time.sleep(0.0005)
        return sleep(command, random.choice((0.0, 0.001, 0.005, 0.02)) if moment == "writing" else 0.0)


def sleep(command: Command, seconds: float) -> bool:
    """Return False if the command has ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not command.has_ended():
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    return not command.has_ended()


def seen(folder: Path, pattern: str) -> set[tuple[str, int, int]]:
    """Return what the pattern matches, with times and sizes."""
    found = set()
    for path in folder.glob(pattern):
        try:
            found.add((str(path), path.stat().st_mtime_ns, path.stat().st_size))
        except FileNotFoundError:
            continue
    return found
