"""What a command line is run by in tests, and what it leaves."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TENSORFLOW = ["tensorflow", "keras", "keras_cv", "tensorflow_datasets"]

# Runs a command line where the named modules cannot be imported, as if they were not installed.
RUN_WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from cli.main import main
main({arguments!r})
"""


class Left(NamedTuple):
    """What a command line left."""

    code: int
    out: str
    err: str


Run = Callable[..., Left]
Told = Callable[..., str]


def run_without(blocked: list[str], *arguments: object) -> Left:
    """In a process of its own, where modules are missing."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT.format(blocked=blocked, arguments=[*map(str, arguments)])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Left(done.returncode, done.stdout, done.stderr)
