"""What a trial is, and what the suite keeps of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Trial:
    """One fault, or several that hit the same work.

    Attributes:
        number: repeats it: `python -m faults --only KIND --seed S --first NUMBER --count 1`.
        what: what was done to what; trials of the same words share a row of the table.
        outcome: in a word or two: refused, the same result, skipped.
        faults: how many there were.
        finding: what is wrong, in words; empty where nothing is.
        went_on: how often a command was seen to go on from what a break had left.
    """

    number: int
    what: str
    outcome: str
    faults: int = 1
    finding: str = ""
    went_on: int = 0


@dataclass(frozen=True)
class Plan:
    """Which trials of a kind are wanted.

    Attributes:
        seed: of the suite.
        numbers: of the trials.
        folder: for their files; empty, and removed by the caller.
        code: tells the kinds apart, so that equal numbers are not equal faults.
    """

    seed: int
    numbers: range
    folder: Path
    code: int

    def draw(self, number: int) -> np.random.Generator:
        """The random numbers of a trial: a function of seed, kind and number alone."""
        return np.random.default_rng([self.seed, self.code, number])


Kind = Callable[[Plan], Iterator[Trial]]


def not_judged(error: Exception) -> str:
    """The finding of a trial in which the suite itself failed: the trials after it are still worth their time."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
    return f"the suite itself failed and cannot judge this trial: {told}"


def shortened(text: str, length: int = 600) -> str:
    """The end of a text, where errors stand."""
    text = text.strip()
    return text if len(text) <= length else "... " + text[-length:]
