"""Run command lines in this process, or in one where modules are missing."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cli.errors import run_and_report
from cli.main import swav_tf

ROOT = Path(__file__).parents[2]
TENSORFLOW = ["tensorflow", "keras", "keras_cv", "tensorflow_datasets"]

RUN_WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from cli.errors import run_and_report
from cli.main import swav_tf
for line in {lines!r}:
    if code := run_and_report(swav_tf, line):
        sys.exit(code)
print([name for name in sys.modules if name.startswith("cli.commands.")])
"""


class Result(NamedTuple):
    """The exit code of a command line and what it printed."""

    code: int
    out: str
    err: str


def run_without(blocked: list[str], *lines: str) -> Result:
    """Run command lines in one new process, as if `blocked` were not installed, until one fails.

    The last line on stdout lists the command modules that were imported.
    """
    script = RUN_WITHOUT.format(blocked=blocked, lines=[shlex.split(line) for line in lines])
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def succeed(line: str) -> None:
    """Run a command line for its files."""
    assert run_and_report(swav_tf, shlex.split(line)) == 0, line


def write_noise(folder: Path, names: list[str], *, height: int = 20, width: int = 24) -> Path:
    """Write images of random pixels, the same at every call."""
    draw = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder
