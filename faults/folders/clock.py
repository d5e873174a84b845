"""A clock that jumps, and file times that are wrong: nothing that is kept or gone on with depends on the time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from faults.folders.ground import Ground, wrong
from faults.jobs import Job
from faults.kills import seen
from faults.outcomes import differences

DAY_S = 86_400.0
_JUMPS_DAYS = (-4000.0, -1.0, -0.01, 0.01, 1.0, 4000.0)


def clock_jumps(ground: Ground, job: Job, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    """A job is killed twice and goes on, each time with another clock."""
    expected = ground.expected(job)
    jumps = [float(days) * DAY_S for days in draw.choice(_JUMPS_DAYS, 3)]
    for offset in jumps[:2]:
        before = seen(folder, job.sign)
        running = ground.commands.start(job.arguments(folder), before=_another_time(offset))
        while seen(folder, job.sign) == before and not running.has_ended():
            time.sleep(0.01)
        end = time.monotonic() + float(draw.random())
        while time.monotonic() < end and not running.has_ended():
            time.sleep(0.01)
        if not running.has_ended():
            running.kill()
        ended = running.wait()
        if ended.code != -9 and (trouble := wrong(ended)):
            return "", f"clock off by {offset:.0f} s: {trouble}"
        for path in folder.rglob("*"):
            then = time.time() + float(draw.choice((-1e9, 1e9)))
            os.utime(path, (then, then))
    remains = job.remains(folder)
    ended = ground.commands.start(job.arguments(folder), before=_another_time(jumps[2])).wait()
    if trouble := wrong(ended):
        return "", f"clock off by {jumps}: {trouble}"
    if lost := remains - job.kept(folder, ended):
        return "", f"clock off by {jumps}: began anew, {min(lost)} was done and not kept"
    return "the same result", differences(expected, job.result(folder))


def _another_time(offset_s: float) -> Callable[[], None]:
    """To be called in the process whose clock shall be wrong."""
    right, right_ns, calls = time.time, time.time_ns, [0]

    def jumping() -> float:
        calls[0] += 1  # and it jumps back in the middle, as when a clock is set
        return right() + (offset_s if calls[0] < 50 else -offset_s)

    def install() -> None:
        time.time = jumping
        time.time_ns = lambda: right_ns() + int(offset_s * 1e9)

    return install
