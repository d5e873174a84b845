"""SIGKILL at random moments: what stands stays whole, and the same command goes on to the same result.

A command that begins anew comes to that result too. So each job tells what a kill has left to go on from, and which of
it the command then kept: all of it must be.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faults.commands import Commands, Ended, Running
from faults.jobs import Job, Made, benchmark, classifier, export, features, make, pretrain, shard
from faults.outcomes import differences
from faults.trial import Plan, Trial, not_judged, shortened

# While a real process starts; at work; as soon as something is written under another name.
MOMENTS = ("start", "work", "writing")
MOMENT_SHARES = (0.1, 0.5, 0.4)
IMPORTS_S = 6.0  # what a real process needs before its first own line
POLL_S = 0.0005
ENOUGH_TRIALS = 3  # of a job, in which some kill must have left something to go on from


@dataclass(frozen=True)
class Course:
    """An undisturbed run.

    Attributes:
        result: of the job.
        start_s: from the start to the first sign of work.
        work_s: from there to the end.
    """

    result: dict[str, Any]
    start_s: float
    work_s: float


def jobs(made: Made) -> list[tuple[Job, int]]:
    """The jobs in turn, and how often each is killed."""
    return [
        (pretrain(), 6),
        (classifier("probe", made.run), 5),
        (classifier("finetune", made.run), 5),
        (shard(made.images), 6),
        (features(made.run, ".npz"), 5),
        (export(made.run, "fp32,int8"), 4),
        (benchmark(made.exported), 5),
        (features(made.run, ".npy"), 5),
        (classifier("probe", made.run, cached=True), 3),
        (features(made.run, ".parquet"), 5),
    ]


def run(plan: Plan) -> Iterator[Trial]:
    """Each trial is one job, killed several times."""
    commands = Commands(plan.folder)
    wanted = jobs(make(commands, plan.folder / "made"))
    courses: dict[str, Course] = {}
    trials: list[Trial] = []
    for number in plan.numbers:
        job, kills = wanted[number % len(wanted)]
        if job.name not in courses:
            courses[job.name] = undisturbed(commands, job, plan.folder / "undisturbed")
        folder = plan.folder / f"killed-{number}"
        trials.append(
            _Victim(commands, job, courses[job.name], folder, plan.draw(number)).trial(number, kills)
        )
        yield trials[-1]
        shutil.rmtree(folder)
    yield from never_went_on([job for job, _ in wanted], trials)


def never_went_on(wanted: list[Job], trials: list[Trial]) -> Iterator[Trial]:
    """A finding for each job that keeps what was done and was never seen to, in trials enough."""
    for job in wanted:
        of_it = [trial for trial in trials if trial.what == job.name]
        if job.goes_on and len(of_it) >= ENOUGH_TRIALS and not sum(trial.went_on for trial in of_it):
            finding = f"in {len(of_it)} trials no kill left anything to go on from: it always begins anew"
            yield Trial(of_it[-1].number, job.name, "broken", faults=0, finding=finding)


def undisturbed(commands: Commands, job: Job, folder: Path) -> Course:
    """The job as it should be, and how long it takes."""
    folder.mkdir(parents=True)
    running = commands.start(job.arguments(folder))
    before = seen(folder, job.sign)
    while seen(folder, job.sign) == before and not running.has_ended():
        time.sleep(POLL_S)
    began = time.monotonic()
    ended = running.wait()
    if ended.code != 0:
        raise RuntimeError(f"{job.name} must succeed undisturbed: {ended}")
    course = Course(job.result(folder), began - running.began, time.monotonic() - began)
    shutil.rmtree(folder)
    return course


class _Victim:
    """A job in a folder that is killed and started again; what is seen of it."""

    def __init__(
        self, commands: Commands, job: Job, course: Course, folder: Path, draw: np.random.Generator
    ) -> None:
        self.commands, self.job, self.course, self.folder, self.draw = commands, job, course, folder, draw
        self.struck: list[str] = []
        self.finding = ""
        self.went_on = 0
        folder.mkdir()

    def trial(self, number: int, kills: int) -> Trial:
        """Kills it so often, and then lets it end."""
        try:
            self._strike_and_end(kills)
        except Exception as error:  # of what the job looks at, say: no trial may lose those of the others
            self.finding = shortened(f"killed at {self.struck}, then: {not_judged(error)}", 1200)
        outcome = "broken" if self.finding else "the same result"
        return Trial(number, self.job.name, outcome, len(self.struck), self.finding, self.went_on)

    def _strike_and_end(self, kills: int) -> None:
        """Where it ends before its turn, its result is looked at, and it begins anew."""
        for _ in range(3 * kills):
            if len(self.struck) >= kills or self.finding:
                break
            self._strike(1 / kills if self.job.goes_on else 1.0)
        if not self.finding:
            remains = self.job.remains(self.folder)
            self._end(self.commands.run(self.job.arguments(self.folder)), remains)

    def _strike(self, share: float) -> None:
        moment = str(self.draw.choice(MOMENTS, p=MOMENT_SHARES))
        remains = self.job.remains(self.folder)
        running = self.commands.start(self.job.arguments(self.folder), real=moment == "start")
        if self._wait(running, moment, share):
            running.kill()
            running.wait()
            self.struck.append(f"{moment} {time.monotonic() - running.began:.2f} s")
            if trouble := self.job.whole(self.folder):
                self.finding = shortened(f"killed at {self.struck}, half-written: {trouble}")
        else:
            self._end(running.wait(), remains)
            if self.job.goes_on and not self.finding:
                shutil.rmtree(self.folder)
                self.folder.mkdir()

    def _end(self, ended: Ended, remains: set[str]) -> None:
        """It came to its end by itself: that must be the undisturbed one, with all that the kills had left."""
        wrong = ended.disgrace or ("" if ended.code == 0 else str(ended))
        left = [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if ".part" in p.name]
        wrong = wrong or (f"left behind: {left}" if left else "")
        wrong = wrong or differences(self.course.result, self.job.result(self.folder))
        if remains and not wrong:
            if lost := remains - self.job.kept(self.folder, ended):
                wrong = f"began anew: {len(lost)} of {len(remains)} things that were done were not kept, as {min(lost)}"
            else:
                self.went_on += 1
        if wrong:
            self.finding = shortened(f"killed at {self.struck}, then: {wrong}", 1200)

    def _wait(self, running: Running, moment: str, share: float) -> bool:
        """Returns at the moment; False if the command has ended by then."""
        wait_s = float(self.draw.random()) * share
        if moment == "start":
            return _sleep(running, float(self.draw.random()) * (IMPORTS_S + self.course.start_s))
        before = seen(self.folder, self.job.sign)
        while self.job.goes_on and seen(self.folder, self.job.sign) == before:
            if running.has_ended():
                return False
            time.sleep(POLL_S)
        # Let some work be done that can be lost.
        whole = self.course.work_s if self.job.goes_on else self.course.start_s + self.course.work_s
        if not _sleep(running, wait_s * whole):
            return False
        while moment == "writing" and not _partial(self.folder):
            if running.has_ended():
                return False
            time.sleep(POLL_S)
        late = float(self.draw.choice((0.0, 0.001, 0.005, 0.02))) if moment == "writing" else 0.0
        return _sleep(running, late)


def _sleep(running: Running, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.has_ended():
            return False
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    return not running.has_ended()


def seen(folder: Path, pattern: str) -> set[tuple[str, int, int]]:
    """What the pattern matches, with times and sizes."""
    found = set()
    for path in folder.glob(pattern):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_mtime_ns, status.st_size))
    return found


def _partial(folder: Path) -> bool:
    """Whether something is being written under another name."""
    try:
        return any(".part" in path.name or ".partial" in path.name for path in folder.rglob("*"))
    except FileNotFoundError:
        return False
