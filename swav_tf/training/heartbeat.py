"""A heartbeat between all workers, which names the one that is lost. No TensorFlow.

A training step waits for every worker. When one dies, hangs or loses its network, TensorFlow may wait forever: it
notices a closed connection, but neither silence nor, with NCCL, a dead process.

Every two workers keep a TCP connection. Each sends a beat several times within the time limit. A connection that
closes without a farewell, or is silent for longer, is a loss. A worker that ends sends the reason.
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

LOST = TransientError.exit_code  # the same command, started again, resumes
BEATS = 8  # within the time limit
LONGEST_MESSAGE = 2000  # characters of a failure that are sent
HELLO_SECONDS = 5.0  # time in which a connecting worker must identify itself


@dataclass(frozen=True)
class Loss:
    """Why no worker can continue.

    Args:
        worker: the one that is lost or has failed.
        message: one paragraph that names it.
        exit_code: exit code of all other workers.
    """

    worker: int
    message: str
    exit_code: int


class WorkerLost(SwavError):
    """Report that another worker died, hangs, lost its network, or failed."""

    def __init__(self, loss: Loss) -> None:
        resumable = loss.exit_code == LOST or loss.exit_code > 128  # stopped by a signal
        again = ": start the same command on all machines to resume." if resumable else "."
        super().__init__(f"{loss.message} The last checkpoint is kept{again}")
        self.exit_code = loss.exit_code


class Heartbeat:
    """The connections of this worker to all others.

    Args:
        worker: number of this worker.
        timeout_seconds: longest silence.
        on_loss: called once, in a thread, at the first loss.
    """

    def __init__(self, *, worker: int, timeout_seconds: float, on_loss: Callable[[Loss], None]) -> None:
        self.worker, self.timeout_seconds, self.on_loss = worker, timeout_seconds, on_loss
        self.loss: Loss | None = None
        self.lost = threading.Event()
        self._name = f"Worker {worker} ({socket.gethostname()}, process {os.getpid()})"
        self._server = listen(0)
        self._connections: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._left = threading.Event()

    @property
    def port(self) -> int:
        """Return the port at which the others connect."""
        return int(self._server.getsockname()[1])

    def start(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Connect to all workers, whose (host, port) come by number, and watch them from now on.

        Raises:
            WorkerLost: some could not be reached in time.
        """
        # Strangers, and workers of an earlier run, do not know the ports of this one.
        key = json.dumps([port for _, port in addresses])
        deadline = time.monotonic() + self.timeout_seconds
        # Everyone listens already, so connecting does not wait for another's `accept`.
        for other, address in enumerate(addresses[: self.worker]):
            with contextlib.suppress(OSError):
                self._greet(other, socket.create_connection(address, timeout=_seconds_to(deadline)), key)
        while len(self._connections) < len(addresses) - 1 and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._server.settimeout(_seconds_to(deadline))
                self._welcome(self._server.accept()[0], key)
        self._server.close()
        missing = set(range(len(addresses))) - self._connections.keys() - {self.worker}
        if missing:
            other = min(missing)
            host, port = addresses[other]
            reason = (
                f"Worker {other} could not be reached at {host}, port {port}, within {self._limit}: the heartbeat "
                "needs a TCP connection, at any port, between every two workers. Allow it, or turn the heartbeat off "
                "with -o train.worker_timeout_seconds=0."
            )
            raise WorkerLost(Loss(other, reason, LOST))
        _in_thread(self._beat)
        for other in self._connections:
            _in_thread(self._watch, other)

    def leave(self, farewell: Loss | None = None) -> None:
        """End the heartbeat; the others receive the reason, if any, and do not report a lost worker."""
        if self._left.is_set():
            return
        self._left.set()
        line = json.dumps({"farewell": asdict(farewell) if farewell else None}) + "\n"
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.sendall(line.encode())
                    connection.shutdown(socket.SHUT_WR)
        self._server.close()

    def failure(self, message: str, exit_code: int) -> Loss:
        """Return what the others receive when this worker fails or is stopped."""
        how = "ended" if exit_code > 128 else "failed"  # by a signal
        return Loss(self.worker, f"{self._name} {how}: {message[:LONGEST_MESSAGE]}", exit_code)

    @property
    def _limit(self) -> str:
        return f"{self.timeout_seconds:g} s (train.worker_timeout_seconds)"

    # === Meeting ===

    def _greet(self, other: int, connection: socket.socket, key: str) -> None:
        connection.settimeout(self.timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(
            (json.dumps({"worker": self.worker, "key": key, "name": self._name}) + "\n").encode()
        )
        self._names.setdefault(other, f"Worker {other}")
        self._connections[other] = connection

    def _welcome(self, connection: socket.socket, key: str) -> None:
        connection.settimeout(min(HELLO_SECONDS, self.timeout_seconds))
        line = b""
        while not line.endswith(b"\n") and len(line) < 1 << 16:  # byte by byte: a beat may follow
            line += connection.recv(1) or b"\n"
        hello = json.loads(line)
        if hello["key"] != key:
            connection.close()
            return
        self._names[int(hello["worker"])] = str(hello["name"])
        self._greet(int(hello["worker"]), connection, key)

    # === Threads ===

    def _beat(self) -> None:
        while not self._left.wait(self.timeout_seconds / BEATS):
            with self._lock:
                for connection in self._connections.values():
                    # Errors are noticed by `_watch`. The buffers of a worker that reads nothing last for days.
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
                why = "is gone: its connection closed without notice, as after kill -9, out of memory or a crash."
                return self._report(Loss(other, f"{self._names[other]} {why}", LOST))
            *lines, pending = (pending + received).split(b"\n")
            for message in map(json.loads, filter(None, lines)):
                if "farewell" in message:
                    farewell: dict[str, Any] | None = message["farewell"]
                    return self._report(Loss(**farewell)) if farewell else None
                self._names[other] = str(message["name"])

    def _report(self, loss: Loss) -> None:
        with self._lock:
            if self._left.is_set() or self.lost.is_set():
                return
            self.loss = loss
            self.lost.set()
        self.on_loss(loss)


def _in_thread(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True, name="heartbeat").start()


def _seconds_to(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
