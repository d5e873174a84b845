"""Things that arrive out of order, late or never, handed out by number. No TensorFlow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Reordered(Generic[Thing]):
    """A stream of numbered things; what it owes for too long is made here instead.

    Who makes a thing makes no difference to it, so time decides only who works: never what comes out.
    """

    def __init__(
        self,
        stream: Callable[[], Iterator[tuple[int, Thing]]],
        make: Callable[[int], Thing],
        *,
        first: int,
        ahead: int,
        patience_seconds: float,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes things from `stream`, in a thread of its own, from the first `get` on.

        Args:
            stream: gives (number, thing) in any order, some twice, and may end or block at any time. An
                exception of it is raised by `get`.
            make: makes the thing of a number here.
            first: smallest number.
            ahead: so many things are kept until they are asked for; when so many later ones are there,
                a missing one counts as lost.
            patience_seconds: when the stream gives nothing for so long, things are made here until it
                gives something again.
            say: is told, in words, when things are made here and when the stream is back.
        """
        self.made_here = 0
        self._stream, self._make, self._ahead = stream, make, ahead
        self._patience, self._say = patience_seconds, say
        self._changed = threading.Condition()
        self._there: dict[int, Thing] = {}
        self._asked: set[int] = set()
        self._wanted_from, self._handed_out = first, set[int]()  # all below the one, and the others
        self._ended = self._stalled = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._last_arrival = 0.0

    @property
    def wanted_from(self) -> int:
        """All smaller numbers are handed out."""
        return self._wanted_from

    @property
    def ended(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._ended

    def get(self, number: int) -> Thing | None:
        """The thing of a number, each asked for once; None after `end`."""
        with self._changed:
            if self._thread is None:
                self._last_arrival = time.monotonic()
                self._thread = threading.Thread(target=self._take, daemon=True)
                self._thread.start()
            self._asked.add(number)
            self._changed.notify_all()
            while not self._must_make(number):
                self._changed.wait(0.1)
            self._asked.discard(number)
            if number in self._there:
                self._hand_out(number)
                self._changed.notify_all()  # there is room again
                return self._there.pop(number)
            if self._ended:
                return None
            if self._failure is not None:
                raise self._failure
            self._hand_out(number)
            self.made_here += 1
        return self._make(number)

    def end(self) -> None:
        """Nothing is wanted any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hand_out(self, number: int) -> None:
        self._handed_out.add(number)
        while self._wanted_from in self._handed_out:
            self._handed_out.discard(self._wanted_from)
            self._wanted_from += 1

    def _must_make(self, number: int) -> bool:
        """Whether the wait is over, by arrival or by loss."""
        if number in self._there or self._ended or self._failure is not None:
            return True
        if not self._stalled and time.monotonic() - self._last_arrival > self._patience:
            self._stalled = True
            self._say(f"nothing came for {self._patience:g} s")
        return self._stalled or self._is_full()

    def _is_full(self) -> bool:
        return len(self._there.keys() - self._asked) >= self._ahead

    def _take(self) -> None:
        try:
            for number, thing in self._stream():
                with self._changed:
                    self._last_arrival = time.monotonic()
                    if self._stalled:
                        self._stalled = False
                        self._say("")
                    if number < self._wanted_from or number in self._handed_out:  # late, or a second time
                        continue
                    self._there[number] = thing
                    self._changed.notify_all()
                    while self._is_full() and not self._ended:
                        self._changed.wait(0.1)
                        self._last_arrival = time.monotonic()  # it is us who do not take
                    if self._ended:
                        return
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            if not self._ended:
                self._stalled = True  # what has not come by now was lost
                self._changed.notify_all()
