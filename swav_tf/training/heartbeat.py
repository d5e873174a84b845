"""A heartbeat between the workers, which names the one that is lost. No TensorFlow.

A training step waits for every worker. When one dies, hangs or loses its network, TensorFlow may wait forever: it
notices a closed connection, but neither silence nor, with NCCL, a dead process.

Worker 0 and every other worker send each other a beat several times within the time limit, over the connections of
their meeting. A connection that closes without a farewell, or is silent for longer, is a loss. A worker that ends sends
the reason; worker 0 passes each loss on to all.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from swav_tf.plumbing.errors import SwavError, TransientError
from swav_tf.training.rendezvous import Meeting

LOST = TransientError.exit_code  # the same command, started again, resumes
BEATS = 8  # within the time limit
LONGEST_MESSAGE = 2000  # characters of a failure that are sent


@dataclass(frozen=True)
class Loss:
    """Why no worker can continue."""

    worker: int  # the one that is lost or has failed
    message: str  # one paragraph that names it
    exit_code: int  # of all other workers


class WorkerLost(SwavError):
    """Report that another worker died, hangs, lost its network, or failed."""

    def __init__(self, loss: Loss) -> None:
        resumable = loss.exit_code == LOST or loss.exit_code > 128  # stopped by a signal
        again = ": start the same command on all machines to resume." if resumable else "."
        super().__init__(f"{loss.message} The last checkpoint is kept{again}")
        self.exit_code = loss.exit_code


class Heartbeat:
    """The beats of this worker, and its watch over those of the workers that it is connected to.

    A worker may be silent for `timeout_seconds`; at the first loss `on_loss` is called in a thread, once.
    """

    def __init__(self, meeting: Meeting, *, timeout_seconds: float, on_loss: Callable[[Loss], None]) -> None:
        self.worker, self.timeout_seconds, self.on_loss = meeting.rank, timeout_seconds, on_loss
        self.loss: Loss | None = None
        self.lost = threading.Event()
        self._names, self._connections = meeting.names, meeting.connections
        self._lock = threading.Lock()
        self._left = threading.Event()
        for connection in self._connections.values():
            connection.socket.settimeout(timeout_seconds)
        _in_thread(self._beat)
        for other in self._connections:
            _in_thread(self._watch, other)

    def leave(self, farewell: Loss | None = None) -> None:
        """End the heartbeat; the others receive the reason, if any, and do not report a lost worker."""
        with self._lock:
            if self._left.is_set():
                return
            self._left.set()
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.send({"farewell": farewell and asdict(farewell)})

    def failure(self, message: str, exit_code: int) -> Loss:
        """Return what the others receive when this worker fails or is stopped."""
        how = "ended" if exit_code > 128 else "failed"  # by a signal
        return Loss(self.worker, f"{self._names[self.worker]} {how}: {message[:LONGEST_MESSAGE]}", exit_code)

    def _beat(self) -> None:
        while not self._left.wait(self.timeout_seconds / BEATS):
            with self._lock:
                for connection in self._connections.values():
                    # Errors are noticed by `_watch`. The buffers of a worker that reads nothing last for days.
                    with contextlib.suppress(OSError):
                        connection.send({})

    def _watch(self, other: int) -> None:
        while True:
            try:
                message = self._connections[other].receive()
            except OSError as error:
                why = "is gone: its connection closed without notice, as after kill -9, out of memory or a crash."
                if isinstance(error, TimeoutError):
                    limit = f"{self.timeout_seconds:g} s (train.worker_timeout_seconds)"
                    why = f"has sent no heartbeat for {limit}: it hangs, was stopped, or lost its network connection."
                return self._report(Loss(other, f"{self._names[other]} {why}", LOST))
            if "farewell" in message:
                farewell: dict[str, Any] | None = message["farewell"]
                return self._report(Loss(**farewell)) if farewell else None

    def _report(self, loss: Loss) -> None:
        with self._lock:
            if self._left.is_set() or self.lost.is_set():
                return
            self.loss = loss
            self.lost.set()
        if self.worker == 0:
            self.leave(loss)  # the others know only what worker 0 tells them
        self.on_loss(loss)


def _in_thread(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True, name="heartbeat").start()
