"""What the trials of folders share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.feature_file import read_feature_file
from faults.commands import Commands, Ended
from faults.isolated import isolated
from faults.jobs import Job, Made, make
from faults.kills import undisturbed
from faults.trial import Plan

# A trial, given an empty folder and random numbers; it returns the outcome, and what is wrong.
Body = Callable[[Path, np.random.Generator], tuple[str, str]]


class Ground:
    """Commands, and what jobs start from."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.commands = Commands(plan.folder)
        self.made: Made = make(self.commands, plan.folder / "made")

    def expected(self, job: Job) -> dict[str, Any]:
        """The result of a job that nothing disturbs."""
        return undisturbed(self.commands, job, self.plan.folder / "undisturbed").result

    def features_of(
        self, images: Path, output: Path, *more: str
    ) -> tuple[Ended, tuple[list[str], np.ndarray]]:
        """How `features` of class folders ended; names and features of all images."""
        ended = self.commands.run(
            [
                "features",
                images,
                "--kind",
                "class_folders",
                "--model",
                self.made.run,
                "--output",
                output,
                *more,
            ],
            limit_s=600,
        )

        def read(path: Path) -> tuple[list[str], np.ndarray]:
            rows = read_feature_file(path)
            return list(rows.names), np.array(rows.features)

        [answer] = isolated(read, [output], limit_s=60)
        return ended, answer.value or ([], np.empty((0, 0)))


def wrong(ended: Ended, code: int = 0) -> str:
    """What is wrong with the end of a command that must have this exit code; empty: nothing."""
    return ended.disgrace or ("" if ended.code == code else str(ended))
