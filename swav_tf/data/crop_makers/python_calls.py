"""An end for the Python calls that tf.data makes on its own threads. No TensorFlow.

TensorFlow destroys a data set's iterator while it holds Python's lock, and waits for the calls that
are in flight; those wait for that lock. A process that stops early, for a signal or an error, would
hang there for ever. So the calls are ended first, and the iterator goes when none is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

_QUIET_SECONDS = 0.1  # a data set that wants another call makes it within microseconds
_made: list[PythonCalls] = []


class PythonCalls:
    """Counts the calls of a data set's function, and answers them with `nothing` once they are ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._begun = 0
        self._running = 0
        self._at_end: list[Callable[[], None]] = []
        _made.append(self)

    def at_end(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when the calls are ended, for those that wait for something."""
        self._at_end.append(wake)

    def counted(
        self, function: Callable[[int], Result], nothing: Callable[[], Result]
    ) -> Callable[[int], Result]:
        """The function for `tf.numpy_function`; `nothing()` has the shapes of a result."""

        def call(argument: int) -> Result:
            with self._lock:
                self._begun += 1
                self._running += 1
            try:
                return nothing() if self._ended else function(argument)
            finally:
                with self._lock:
                    self._running -= 1

        return call

    def end(self) -> None:
        """Returns when no call runs and none comes any more: the data set's buffers are full."""
        self._ended = True
        for wake in self._at_end:
            wake()
        begun, quiet_since = -1, time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_SECONDS:
            time.sleep(0.01)
            with self._lock:
                if self._running or self._begun != begun:
                    begun, quiet_since = self._begun, time.monotonic()


@contextmanager
def ended_after() -> Iterator[None]:
    """Ends the calls of all data sets made inside; their iterators must live until then."""
    before = len(_made)
    try:
        yield
    finally:
        for calls in _made[before:]:
            calls.end()
        del _made[before:]
