"""`swav-tf` commands in processes that can be killed, without TensorFlow's start-up each time.

TensorFlow takes six seconds to import. So it is imported once, in this process, which never makes an
operation and has one thread; each command runs in a fork of it, by the same function that the console
script calls. A few commands are run as real processes, to hit the start-up itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 240.0  # of a command that takes 20 s on a quiet machine: past it, it hangs
NOT_FORESEEN = ("Traceback (most recent call last)", "This was not foreseen")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; minus the signal's number where a signal ended it; None: it was killed as it hung.
        stdout, stderr: what it said.
        seconds: how long it ran.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def disgrace(self) -> str:
        """What no end of a command may look like, in words; empty where it does not."""
        if self.code is None:
            return f"hangs: has not ended after {self.seconds:.0f} s; {self.stderr[-400:]}"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}; {self.stderr[-400:]}"
        for mark in NOT_FORESEEN:
            if mark in self.stderr:
                return f"exit code {self.code}, not foreseen: {self.stderr[-700:]}"
        if self.code and not self.stderr.strip() and not self.stdout.strip():
            return f"exit code {self.code} without a word"
        return ""


class Running:
    """A command that runs; it must be waited for."""

    def __init__(self, pid: int, said: Path, limit_s: float) -> None:
        self.pid, self.said, self.limit_s = pid, said, limit_s
        self.began = time.monotonic()
        self._status: int | None = None

    def has_ended(self) -> bool:
        """Whether it has, by itself or otherwise."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)
        while not self.has_ended():
            time.sleep(0.001)

    def wait(self) -> Ended:
        """Returns when it has ended; kills it past its limit."""
        hung = False
        while not self.has_ended():
            if time.monotonic() - self.began > self.limit_s:
                hung = True
                self.kill()
            time.sleep(0.002)
        assert self._status is not None
        seconds = time.monotonic() - self.began
        out, err = (
            path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            for path in (self.said.with_suffix(".out"), self.said.with_suffix(".err"))
        )
        for path in (self.said.with_suffix(".out"), self.said.with_suffix(".err")):
            path.unlink(missing_ok=True)
        return Ended(None if hung else os.waitstatus_to_exitcode(self._status), out, err, seconds)


class Commands:
    """Starts commands, one or more at a time.

    Args:
        folder: for what they say; not one whose disk is made full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0
        _import_once()

    def start(
        self,
        arguments: Sequence[Any],
        *,
        before: Callable[[], None] | None = None,
        real: bool = False,
        stdout: Path | None = None,
        environment: Mapping[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Running:
        """Starts `swav-tf` with these arguments.

        Args:
            arguments: of the command line.
            before: called in the new process first, if it is a fork.
            real: a process of its own from the start, not a fork.
            stdout: file for it, of a real process; None: one that is read at the end.
            environment: of a real process, beside our own.
            limit_s: past it, it hangs.
        """
        self._started += 1
        said = self.folder / f"said-{os.getpid()}-{self._started}"
        words = [os.fspath(argument) for argument in arguments]
        if real:
            stdout = stdout or said.with_suffix(".out")
            with stdout.open("wb") as out, said.with_suffix(".err").open("wb") as err:
                command = [sys.executable, "-m", "cli.main", *words]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
            process.returncode = 0  # it is waited for here, not by its destructor
            return Running(process.pid, said, limit_s)
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("Commands can be forked from a process with one thread only.")
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _be_command(words, said, before)
        return Running(child, said, limit_s)

    def run(self, arguments: Sequence[Any], *, limit_s: float = LIMIT_S) -> Ended:
        """Starts a command and waits for it."""
        return self.start(arguments, limit_s=limit_s).wait()

    def must_run(self, arguments: Sequence[Any]) -> Ended:
        """Runs a command that has no reason to fail.

        Raises:
            RuntimeError: it does.
        """
        ended = self.run(arguments)
        if ended.code != 0:
            raise RuntimeError(f"swav-tf {arguments} must succeed: {ended}")
        return ended


def _import_once() -> None:
    """All that commands import slowly; none of it may start a thread."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # TensorFlow's greetings
    try:
        import swav_tf.training.classify
        import swav_tf.training.pretrain  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _be_command(words: list[str], said: Path, before: Callable[[], None] | None) -> None:
    """The forked process; never returns. It ends as Python does: threads, then what waits for the exit."""
    code = 70
    try:
        os.setsid()
        for number, ending, flags in ((0, "", os.O_RDONLY), (1, ".out", -1), (2, ".err", -1)):
            path = os.devnull if not ending else str(said.with_suffix(ending))
            opened = os.open(path, flags if flags >= 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["swav-tf", *words]
        if before is not None:
            before()
        from cli.errors import run_and_report
        from cli.main import swav_tf

        code = run_and_report(swav_tf, words)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
