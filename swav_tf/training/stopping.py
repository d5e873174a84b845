"""SIGTERM and Ctrl-C while one of several workers trains nothing yet, and may be waiting for the others. No TensorFlow.

Python runs a handler only between its own instructions, and a worker that waits for another stands in TensorFlow.
TensorFlow itself takes SIGTERM when a cluster starts, and does nothing at it.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from swav_tf.plumbing.errors import SwavError

STOPS = (signal.SIGTERM, signal.SIGINT)


class StoppedEarly(SwavError):
    """The run stopped because it was asked to while no step was being trained."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"Stopped by {signal.Signals(number).name} while no step was being trained: there was nothing to save. "
            "The same command goes on from where the run stands."
        )
        self.exit_code = 128 + number


class _Stop(BaseException):
    """Passes everything that catches errors on its way out."""


@contextmanager
def stoppable(if_stuck: Callable[[StoppedEarly], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end what is inside at once, but where other handlers take their place for a while.

    Args:
        if_stuck: called at the signal, in another thread: it must bring back a main thread that waits in TensorFlow.

    Raises:
        StoppedEarly: there was a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    asked: list[int] = []
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if not stopping:  # schedulers may send SIGTERM twice and mean the same as once
            stopping.append(number)
            raise _Stop

    def listen() -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in STOPS and signal.getsignal(number[0]) is stop:
                    asked.append(number[0])
                    if_stuck(StoppedEarly(number[0]))

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, stop) for number in STOPS}
    # A checkpoint is wished for, and there is nothing to write: by itself the signal would end the process.
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True, name="early signals").start()
    try:
        try:
            yield
        finally:
            stopping.append(0)  # from here on a signal interrupts nothing
    except BaseException as error:
        if asked:  # it may be the error that brought the main thread back
            raise StoppedEarly(asked[0]) from (None if isinstance(error, _Stop) else error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        writer.close()
