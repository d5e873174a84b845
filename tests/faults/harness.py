"""Run `swav-tf` commands and single calls in forks of a process that has TensorFlow imported already.

TensorFlow takes seconds to import. A fork server imports it once and stays single-threaded; each command runs in a
fork of it, by the function that the console script calls.
"""

import atexit
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXIT_CODES = (0, 1, 2, 75, 130, 143)
UNEXPECTED = ("Traceback (most recent call last)", "This is a bug or an unexpected input")
LIMIT_S = 300.0  # of a command that takes 20 s on an idle machine
MEMORY_BYTES = 6 * 2**30  # of an isolated call
SCALE = float(os.environ.get("FAULTS_SCALE", "1"))  # below 1: fewer inputs and rounds

_SERVER = multiprocessing.get_context("forkserver")
_NUMBERS = count()


def start_server() -> None:
    """Start the fork server; its environment has one thread for each library that starts threads on import."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
    _SERVER.set_forkserver_preload(
        ["swav_tf.training.classify", "swav_tf.training.pretrain", "cli.main", "tests.faults.harness"]
    )
    assert Worker()(_threads) == 1, "commands can be forked from a process with one thread only"


@cache
def _printed() -> Path:
    """Return the folder for the output of commands; not on a disk that is made full."""
    folder = Path(tempfile.mkdtemp(prefix="swav-tf-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _threads() -> int:
    return len(os.listdir(f"/proc/{os.getppid()}/task"))


# === Commands ===


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is minus the signal's number if a signal ended it."""

    code: int
    out: str
    err: str

    def check(self, *codes: int) -> None:
        """Assert what holds for the end of every command, and that it has one of these exit codes."""
        assert self.code in (codes or EXIT_CODES), self
        assert not any(mark in self.err for mark in UNEXPECTED), self
        assert not self.code or self.err.strip() or self.out.strip(), (
            f"exit code {self.code} without a message"
        )


class Command:
    """A running command."""

    def __init__(
        self, *words: object, environment: Mapping[str, str] = {}, before: Callable[[], None] | None = None
    ) -> None:
        self.printed = _printed() / f"{os.getpid()}-{next(_NUMBERS)}"
        self.began = time.monotonic()
        self._process = _SERVER.Process(
            target=_be_command, args=([*map(str, words)], self.printed, dict(environment), before)
        )
        self._process.start()

    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL to it and to everything it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            self._process.kill()

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Return how it ended, unless it hangs."""
        self._process.join(limit_s)
        hangs = not self.has_ended()
        if hangs:
            self.kill()
            self._process.join()
        texts = []
        for path in (self.printed.with_suffix(".out"), self.printed.with_suffix(".err")):
            texts.append(path.read_text("utf-8", "replace") if path.exists() else "")
            path.unlink(missing_ok=True)
        assert not hangs, f"hangs: has not ended after {limit_s:.0f} s. {texts[1][-1000:]}"
        return Ended(self._process.exitcode, *texts)


def run(*words: object, code: int = 0, limit_s: float = LIMIT_S) -> Ended:
    """Run a command that must end with this exit code."""
    ended = Command(*words).wait(limit_s)
    ended.check(code)
    return ended


def refused(*words: object) -> Ended:
    """Run a command that must fail with a message."""
    ended = Command(*words).wait()
    ended.check(1, 2)
    return ended


def _be_command(
    words: list[str], printed: Path, environment: dict[str, str], before: Callable[[], None] | None
) -> None:
    os.setsid()
    for number, ending in ((1, ".out"), (2, ".err")):
        opened = os.open(printed.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["swav-tf", *words]
    os.environ.update(environment)
    tempfile.tempdir = environment.get("TMPDIR")  # even if the disk is full by now
    if before is not None:
        before()
    from cli.errors import run_and_report
    from cli.main import swav_tf

    code = run_and_report(swav_tf, words)
    atexit._run_exitfuncs()
    sys.exit(code)


# === Single calls ===


class Worker:
    """Call functions in a long-lived process with limits of time and memory, replaced when it dies."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any, limit_s: float = 60.0) -> Any:
        """Return the function's result; a crash or hang of the process is an AssertionError."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=_SERVER, initializer=_limit)
        try:
            return self._pool.submit(function, *arguments).result(limit_s)
        except BrokenProcessPool:
            self._pool = None
            raise AssertionError("crashes the interpreter") from None
        except TimeoutError:
            self.close()
            raise AssertionError(f"hangs: no answer in {limit_s:g} s") from None

    def close(self) -> None:
        if self._pool is not None:
            for process in (self._pool._processes or {}).values():
                process.kill()
            self._pool.shutdown()
            self._pool = None


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries report damage there


# === Damage ===


def examples(number: int) -> settings:
    """Return hypothesis settings for a number of inputs."""
    return settings(
        max_examples=max(1, round(number * SCALE)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def rounds(number: int) -> range:
    """Return how often a trial of many commands is repeated."""
    return range(max(1, round(number * SCALE)))


# Numbers that readers of binary formats do not expect.
EDGES = tuple(
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
DAMAGES = (
    "flipped bits", "flipped early bits", "cut off", "cut off a little", "block of zeros", "block of noise",
    "inserted bytes", "lost bytes", "edge number", "appended bytes",
)  # fmt: skip


damages = st.sampled_from(DAMAGES)
randoms = st.randoms(use_true_random=False)


def damage(original: bytes, how: str, random: Random) -> bytes:
    """Damage bytes as disks, downloads and malice do."""
    while (data := _damage(original, how, random)) == original:
        pass
    return data


def _damage(data: bytes, how: str, random: Random) -> bytes:
    start, length = random.randrange(len(data)), random.randint(1, 64)
    if how.startswith("flipped"):
        changed = bytearray(data)
        for _ in range(random.randint(1, 8)):
            place = random.randrange(min(len(data), 256) if "early" in how else len(data))
            changed[place] ^= 1 << random.randrange(8)
        return bytes(changed)
    if how == "block of zeros":
        block = bytes(min(random.randint(1, 4096), len(data) - start))
    elif how == "edge number":
        block = random.choice(EDGES)
    else:
        block = random.getrandbits(8 * length).to_bytes(length, "little")
    return {
        "cut off": data[:start],
        "cut off a little": data[:-length],
        "inserted bytes": data[:start] + block + data[start:],
        "lost bytes": data[:start] + data[start + length :],
        "appended bytes": data + block,
    }.get(how, data[:start] + block + data[start + len(block) :])
