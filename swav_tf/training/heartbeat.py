"""Who of several workers is still there: a heartbeat between all of them. No TensorFlow.

A step of several workers waits for each of them. When one dies, hangs or loses its network, TensorFlow
may wait without end: it sees a closed connection, but neither silence nor, with NCCL, a dead process.

Every two workers hold a TCP connection. Each sends a beat a few times within the time limit; a connection
that closes without a farewell, or is silent for longer, is a loss. Whoever ends says so, and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swav_tf.plumbing.errors import SwavError, TransientError
from swav_tf.training.rendezvous import listen

LOST = TransientError.exit_code  # the same command, started again, goes on
BEATS = 8  # within the time limit
LONGEST_MESSAGE = 2000  # characters of a failure that the others are told
STRANGERS_SECONDS = 5.0  # for which someone who connects and says nothing is waited for


@dataclass(frozen=True)
class Loss:
    """Why a worker cannot go on: what happened to another one.

    Args:
        worker: the one that is lost or has failed.
        message: of one paragraph, naming it.
        exit_code: what every other worker ends with.
    """

    worker: int
    message: str
    exit_code: int


class WorkerLost(SwavError):
    """Another worker died, hangs, lost its network, or failed."""

    def __init__(self, loss: Loss) -> None:
        again = (
            "The last checkpoint is kept: start the same command on all machines to go on."
            if loss.exit_code == LOST or loss.exit_code > 128  # stopped by a signal
            else "The last checkpoint is kept."
        )
        super().__init__(f"{loss.message} {again}")
        self.exit_code = loss.exit_code


class WorkerWatch:
    """This worker's connections to all others.

    Args:
        worker: this worker's number.
        timeout_seconds: longest silence.
        on_loss: called once, in a thread of the watch, at the first loss.
    """

    def __init__(self, *, worker: int, timeout_seconds: float, on_loss: Callable[[Loss], None]) -> None:
        self.worker, self.timeout_seconds, self.on_loss = worker, timeout_seconds, on_loss
        self.loss: Loss | None = None
        self.lost = threading.Event()
        self._server = listen(0)
        self._connections: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._writing = threading.Lock()
        self._left = threading.Event()

    @property
    def port(self) -> int:
        """Where the others find this worker."""
        return int(self._server.getsockname()[1])

    def start(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Connects to all workers, whose (host, port) come by number, and watches from now on.

        Raises:
            WorkerLost: some could not be reached in time.
        """
        # Who is met by mistake, a stranger or an earlier run's worker, has another list.
        key = json.dumps([port for _, port in addresses])
        deadline = time.monotonic() + self.timeout_seconds
        # Everyone listens already, so nobody waits for another's `accept` here.
        for other, address in enumerate(addresses[: self.worker]):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(address, timeout=_left_until(deadline))
                self._greet(other, connection, key)
        while len(self._connections) < len(addresses) - 1 and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._server.settimeout(_left_until(deadline))
                connection, _ = self._server.accept()
                self._welcome(connection, key)
        self._server.close()
        missing = set(range(len(addresses))) - self._connections.keys() - {self.worker}
        for other in sorted(missing):
            host, port = addresses[other]
            raise WorkerLost(
                Loss(
                    other,
                    f"Worker {other} could not be reached at {host}, port {port}, within {self._limit}: every two "
                    "workers need a TCP connection, at any port, to watch each other. Open it, or give up the watch "
                    "with -o train.worker_timeout_seconds=0.",
                    LOST,
                )
            )
        _in_thread(self._beat)
        for other in self._connections:
            _in_thread(self._watch, other)

    def leave(self, farewell: Loss | None = None) -> None:
        """Says good-bye: all is well, or what this worker ends with. Its own end is no loss then."""
        if self._left.is_set():
            return
        self._left.set()
        line = json.dumps({"farewell": asdict(farewell) if farewell else None}) + "\n"
        with self._writing:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.sendall(line.encode())
                    connection.shutdown(socket.SHUT_WR)
        self._server.close()

    def failure(self, message: str, exit_code: int) -> Loss:
        """What the others are told when this worker fails."""
        who = f"Worker {self.worker} ({socket.gethostname()}, process {os.getpid()})"
        how = "ended" if exit_code > 128 else "failed"  # by a signal
        return Loss(self.worker, f"{who} {how}: {message[:LONGEST_MESSAGE]}", exit_code)

    @property
    def _limit(self) -> str:
        return f"{self.timeout_seconds:g} s (train.worker_timeout_seconds)"

    # === Meeting ===

    def _greet(self, other: int, connection: socket.socket, key: str) -> None:
        connection.settimeout(self.timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"{socket.gethostname()}, process {os.getpid()}"
        connection.sendall((json.dumps({"worker": self.worker, "key": key, "name": name}) + "\n").encode())
        self._names[other] = f"Worker {other}"
        self._connections[other] = connection

    def _welcome(self, connection: socket.socket, key: str) -> None:
        connection.settimeout(min(STRANGERS_SECONDS, self.timeout_seconds))
        hello = json.loads(_line(connection))
        if hello["key"] != key:
            connection.close()
            return
        self._greet(int(hello["worker"]), connection, key)
        self._named(hello)

    def _named(self, hello: dict[str, Any]) -> None:
        self._names[int(hello["worker"])] = f"Worker {hello['worker']} ({hello['name']})"

    # === Threads ===

    def _beat(self) -> None:
        while not self._left.wait(self.timeout_seconds / BEATS):
            with self._writing:
                for connection in self._connections.values():
                    # What is wrong with it is its watcher's to tell. A peer that reads nothing has room for
                    # days of beats in its buffers.
                    with contextlib.suppress(OSError):
                        connection.sendall(b"\n")

    def _watch(self, other: int) -> None:
        connection, pending = self._connections[other], b""
        while True:
            try:
                received = connection.recv(1 << 16)
            except TimeoutError:
                why = f"has been silent for {self._limit}: it hangs, is stopped, or its network is lost."
                return self._report(Loss(other, f"{self._names[other]} {why}", LOST))
            except OSError:
                received = b""
            if not received:
                why = "is gone: its connection closed without a word, as after kill -9, for want of memory, or a crash."
                return self._report(Loss(other, f"{self._names[other]} {why}", LOST))
            *lines, pending = (pending + received).split(b"\n")
            for line in filter(None, lines):
                said = json.loads(line)
                if "farewell" in said:
                    return self._report(Loss(**said["farewell"])) if said["farewell"] else None
                self._named(said)

    def _report(self, loss: Loss) -> None:
        with self._writing:
            if self._left.is_set() or self.lost.is_set():
                return
            self.loss = loss
            self.lost.set()
        self.on_loss(loss)


def _in_thread(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True, name="worker watch").start()


def _left_until(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _line(connection: socket.socket) -> str:
    """One line, byte by byte: nothing of what follows it may be taken."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 1 << 16:
        byte = connection.recv(1)
        if not byte:
            break
        text += byte
    return text.decode()
