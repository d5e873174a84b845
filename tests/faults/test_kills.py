"""SIGKILL at random moments: nothing is half-written, and the same command resumes and ends with the same result."""

import shutil
import time
from pathlib import Path
from random import Random

import pytest

from tests.faults import jobs
from tests.faults.conftest import Tally
from tests.faults.harness import SCALE, Command, Ended, rounds

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
KILLS = {"pretrain": 6, "data shard": 6, "export fp32,int8": 4, "probe --cached": 3}
ROUNDS = 4  # in which some kill must have left something to resume from
MOMENTS = ("start", *["work"] * 5, *["writing"] * 4)


@pytest.mark.parametrize("name", jobs.LONG_JOBS)
def test_killed(name: str, inputs: jobs.Inputs, folder: Path, random: Random, tally: Tally) -> None:
    job = next(job for job in jobs.long_jobs(inputs) if job.name == name)
    undisturbed = Undisturbed(job, folder / "undisturbed")
    resumed = 0
    for number in rounds(ROUNDS):
        victim = Victim(job, undisturbed, folder / str(number), random)
        for _ in range(3 * KILLS.get(name, 5)):
            if victim.kills < KILLS.get(name, 5):
                victim.strike(1 / KILLS.get(name, 5) if job.resumes else 1.0)
        victim.run_to_the_end()
        tally(f"kill -9: {name}", "killed", victim.kills)
        tally(f"kill -9: {name}", "the same result")
        tally(f"kill -9: {name}", "observed: resumed", victim.resumed)
        resumed += victim.resumed
    assert resumed or not job.resumes or SCALE < 1, "no kill left anything to resume from"


class Undisturbed:
    """The result of a job, and how long it takes to the first progress and from there to the end."""

    def __init__(self, job: jobs.Job, folder: Path) -> None:
        folder.mkdir()
        before, command = seen(folder, job.sign), Command(*job.words(folder))
        while seen(folder, job.sign) == before and not command.has_ended():
            time.sleep(0.001)
        progress = time.monotonic()
        ended = command.wait()
        ended.check()
        assert ended.code == 0, ended
        self.result = job.result(folder)
        self.start_s, self.work_s = progress - command.began, time.monotonic() - progress
        shutil.rmtree(folder)


class Victim:
    """A job in a folder that is killed and started again."""

    def __init__(self, job: jobs.Job, undisturbed: Undisturbed, folder: Path, random: Random) -> None:
        self.job, self.undisturbed, self.folder, self.random = job, undisturbed, folder, random
        self.kills = self.resumed = 0
        folder.mkdir()

    def strike(self, share: float) -> None:
        """Start the command and kill it; if it ends before that, check its result and start over."""
        remains, command = self.job.remains(self.folder), Command(*self.job.words(self.folder))
        if self._wait(command, share):
            command.kill()
            command.wait()
            self.kills += 1
            self.job.check(self.folder)
        else:
            self._check_end(command.wait(), remains)
            if self.job.resumes:
                shutil.rmtree(self.folder)
                self.folder.mkdir()

    def run_to_the_end(self) -> None:
        remains = self.job.remains(self.folder)
        self._check_end(Command(*self.job.words(self.folder)).wait(), remains)

    def _check_end(self, ended: Ended, remains: set[str]) -> None:
        ended.check()
        assert ended.code == 0, ended
        assert not [path for path in self.folder.rglob("*") if ".part" in path.name]
        assert self.job.result(self.folder) == self.undisturbed.result
        if remains:
            assert remains <= self.job.kept(self.folder, ended), "began from scratch"
            self.resumed += 1

    def _wait(self, command: Command, share: float) -> bool:
        """Wait for a random moment; return False if the command has ended by then."""
        random, job = self.random, self.job
        moment, start_s, work_s = random.choice(MOMENTS), self.undisturbed.start_s, self.undisturbed.work_s
        if moment == "start":
            return sleep(command, random.uniform(0, start_s))
        before = seen(self.folder, job.sign)
        while job.resumes and seen(self.folder, job.sign) == before:
            if command.has_ended():
                return False
            time.sleep(0.0005)
        # Let some work be done that can be lost.
        if not sleep(command, random.random() * share * (work_s if job.resumes else start_s + work_s)):
            return False
        while moment == "writing" and not is_writing(self.folder):
            if command.has_ended():
                return False
            time.sleep(0.0005)
        return sleep(command, random.choice((0.0, 0.001, 0.005, 0.02)) if moment == "writing" else 0.0)


def sleep(command: Command, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not command.has_ended():
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    return not command.has_ended()


def seen(folder: Path, pattern: str) -> set[tuple[str, int, int]]:
    """Return what the pattern matches, with times and sizes."""
    found = set()
    for path in folder.glob(pattern):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_mtime_ns, status.st_size))
    return found


def is_writing(folder: Path) -> bool:
    """Return whether something is being written under a temporary name."""
    try:
        return any(".part" in path.name for path in folder.rglob("*"))
    except FileNotFoundError:
        return False
