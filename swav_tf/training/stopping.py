"""The signals that stop a run, and what they do while one of several workers waits for the others. No TensorFlow.

Python runs a signal handler only between its own instructions, and a worker that waits for another is inside
TensorFlow, which catches SIGTERM when a cluster starts and does nothing. So a thread receives the signals.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from swav_tf.plumbing.errors import SwavError, report_of
from swav_tf.plumbing.log import leave_closed_terminal

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a run: all, but not the SIGHUP of a closed terminal if `nohup` disabled it."""
    return [n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


class StoppedEarly(SwavError):
    """Report that the run was asked to stop while no step was being trained."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"Stopped by {signal.Signals(number).name} while no step was being trained; nothing had to be saved. "
            "The same command resumes the run."
        )
        self.exit_code = 128 + number


def exit_now(error: SwavError) -> None:
    """Report an error and end this process from any thread, whatever the others wait for."""
    print(report_of(error), file=sys.stderr, flush=True)
    os._exit(error.exit_code)


class _Stop(BaseException):
    """Leave everything that catches errors."""


@contextmanager
def stoppable(if_stuck: Callable[[StoppedEarly], None]) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGHUP end the block at once, unless other handlers replace these for a while.

    Args:
        if_stuck: called at the signal, in another thread: it must bring back a main thread that waits in TensorFlow.

    Raises:
        StoppedEarly: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    received: list[int] = []
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        leave_closed_terminal()
        if not stopping.is_set():  # schedulers may send SIGTERM twice
            stopping.set()
            raise _Stop

    def listen() -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in STOPS and signal.getsignal(number[0]) is stop:
                    received.append(number[0])
                    if_stuck(StoppedEarly(number[0]))

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, stop) for number in stop_signals()}
    # SIGUSR1 requests a checkpoint, and there is nothing to write yet: by default it would end the process.
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True, name="early signals").start()
    try:
        try:
            yield
        finally:
            stopping.set()  # from here on a signal interrupts nothing
    except BaseException as error:
        if received:  # it may be the error that brought the main thread back
            raise StoppedEarly(received[0]) from (None if isinstance(error, _Stop) else error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        writer.close()
