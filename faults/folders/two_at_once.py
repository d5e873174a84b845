"""Two processes that write one folder: one refuses in words, or both end with the right result."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from faults.folders.ground import Ground
from faults.jobs import Job
from faults.outcomes import differences


def two_at_once(ground: Ground, job: Job, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    """The same command twice, the second one up to half a second later."""
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
    what = "one refused" if any(ended.code for ended in ends) else "both done"
    return f"{what}, the same result", differences(expected, job.result(folder)) or job.whole(folder)
