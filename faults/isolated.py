"""Calls that may hang, crash natively or eat the memory, each answer judged by whoever asked.

They run one after the other in a forked process under a limit of time and of memory; when it dies or
hangs, the call that it was at is known, and another process goes on behind it.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Argument = TypeVar("Argument")

MEMORY_BYTES = 6 * 2**30


@dataclass(frozen=True)
class Answer(Generic[Argument]):
    """What came of one call.

    Attributes:
        argument: of the call.
        value: what it returned.
        broken: why there is no value, in words: a hang, a crash, an exception; empty where there is one.
    """

    argument: Argument
    value: Any = None
    broken: str = ""


def isolated(
    function: Callable[[Argument], Any], arguments: Sequence[Argument], *, limit_s: float = 20.0
) -> Iterator[Answer[Argument]]:
    """`function` of each argument, in order."""
    done = 0
    while done < len(arguments):
        for answer in _one_process(function, arguments[done:], limit_s):
            done += 1
            yield answer


def _one_process(
    function: Callable[[Argument], Any], arguments: Sequence[Argument], limit_s: float
) -> Iterator[Answer[Argument]]:
    """Answers up to the first that is broken by a crash or a hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer_all(function, arguments, writing)
    os.close(writing)
    try:
        for argument in arguments:
            message = _receive(reading, limit_s)
            if isinstance(message, str):
                yield Answer(argument, broken=message or _death(child))
                return
            value, broken = message
            yield Answer(argument, value, broken)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer_all(function: Callable[[Any], Any], arguments: Sequence[Any], writing: int) -> None:
    """The forked process; never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C grumble there about damage
        for argument in arguments:
            try:
                message = pickle.dumps((function(argument), ""))
            except BaseException as error:
                lines = traceback.format_exception(error)
                message = pickle.dumps((None, f"{type(error).__name__}: {error}\n" + "".join(lines[-3:])))
            message = struct.pack("<Q", len(message)) + message
            while message:
                message = message[os.write(writing, message) :]
    finally:
        os._exit(0)


def _receive(reading: int, limit_s: float) -> Any:
    """A message; a text where there is none: of a hang, or empty where the process has died."""
    end = time.monotonic() + limit_s
    data, wanted = b"", 8
    while len(data) < wanted:
        if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            return f"hangs: no answer in {limit_s:g} s"
        part = os.read(reading, wanted - len(data))
        if not part:
            return ""
        data += part
        if wanted == 8 and len(data) == 8:
            wanted += struct.unpack("<Q", data)[0]
    return pickle.loads(data[8:])


def _death(child: int) -> str:
    """How a process ended that closed its pipe."""
    time.sleep(0.05)
    information = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert information is not None
    if information.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        return f"crashes natively: {signal.Signals(information.si_status).name}"
    return f"ends the process with code {information.si_status}"
