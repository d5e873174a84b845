"""Make crops in processes of this machine."""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from swav_tf.data.augment import Image
from swav_tf.data.crop_child import SEATS, seats_in
from swav_tf.data.order import CropsByPosition
from swav_tf.plumbing.errors import DataError

LARGEST_CHUNK: Final = 16  # images

Chunk = list[npt.NDArray[Any]]  # of each crop group (images, count, size, size, 3), then classes (images,)
MakeRow = Callable[[int], list[Any]]  # crop groups and class of a place


def largest_chunk(images: int) -> int:
    """The largest part of at most LARGEST_CHUNK images that divides `images`."""
    return max(size for size in range(1, LARGEST_CHUNK + 1) if images % size == 0)


def make_chunk(make: MakeRow, places: Sequence[int]) -> Chunk:
    """The chunk of these places, made here."""
    return [np.stack(column) for column in zip(*map(make, places), strict=True)]


def mend_chunk(
    chunk: Chunk, readable: Sequence[bool], make: MakeRow, places: Sequence[int], *, good: Callable[[], None]
) -> None:
    """Makes here what another process could not read: it may be readable or have a stand-in. `good` counts the rest."""
    for row, place in enumerate(places):
        if readable[row]:
            good()
            continue
        for whole, one in zip(chunk, make(place), strict=True):
            whole[row] = one


PATIENCE_SECONDS: Final = 60  # with a process that does not answer; a chunk of 16 images takes a second
_GRACE_SECONDS: Final = 10  # for an answer, once its chunk has been made here
# For killed processes to be gone: one that waits for a dead network disk stays, and must not keep the trainer.
_END_SECONDS: Final = 5

_made: weakref.WeakSet[CropProcesses] = weakref.WeakSet()


@dataclass(frozen=True)
class _Seat:
    """Where a process puts a chunk, and the socket that asks for one; used by one thread at a time."""

    process: subprocess.Popen[bytes]
    socket: Connection[Any, Any]
    crops: list[Image]  # of each crop group (images, count, size, size, 3)


class CropProcesses:
    """Chunks of crops by number, the same that this process would make, bit for bit."""

    def __init__(
        self,
        count: int,
        crops: CropsByPosition,
        position_of: Callable[[int], int],
        make: MakeRow,
        *,
        chunk: int,
        good: Callable[[], None],
    ) -> None:
        """Starts the processes. Chunk k holds the images of places k * chunk to (k + 1) * chunk - 1.

        Args:
            count: of processes, >= 1.
            crops: what they make.
            position_of: the run's position of a place.
            make: the crop groups and the class of a place, made here where a process cannot.
            chunk: images that come together.
            good: is told of each image that a process could read.

        Raises:
            DataError: they do not start, or the system is not Linux.
        """
        self._position_of, self._make, self._chunk, self._good = position_of, make, chunk, good
        if not hasattr(os, "memfd_create"):
            raise DataError(
                "data.processes needs Linux. Set it to 0 to make the crops in threads of this process."
            )
        self._ended = False
        self._retired: set[int] = set()  # processes, by number, that are asked for nothing any more
        self._lock = threading.Lock()
        self._seats: list[_Seat] = []
        self._free: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        task = pickle.dumps((crops, chunk))  # once: the names of a million images take their time
        try:
            for _ in range(count):
                self._seats += _start(crops.shapes, chunk)
            for seat in self._seats[::SEATS]:
                seat.socket.send_bytes(task)
            for seat in self._seats[::SEATS]:
                seat.socket.recv()  # it is ready
        except (OSError, EOFError) as error:
            self.end()
            codes = {seat.process.returncode for seat in self._seats} - {-signal.SIGKILL, None}
            reason = _in_words(codes.pop()) if codes else str(error) or _in_words(-signal.SIGKILL)
            raise DataError(
                f"data.processes must be as many processes as this machine can start. Received: {count}; {reason}. "
                "Set fewer, or 0 to make the crops in threads of this process."
            ) from error
        for place in range(SEATS):  # the first seats of all come before the second ones
            for seat in self._seats[place::SEATS]:
                self._free.put(seat)
        _made.add(self)

    @property
    def calls(self) -> int:
        """So many calls of `get` at once keep all processes at work."""
        return len(self._seats)

    def get(self, number: int) -> Chunk | None:
        """The chunk of a number, from any thread; None after `end`."""
        places = range(number * self._chunk, (number + 1) * self._chunk)
        seat = self._free.get()
        try:
            labels = self._ask(seat, places)
            if labels is None:
                if self._ended:
                    return None
                # A disk that holds up all processes holds this up, too: only then a process is judged.
                made_here = make_chunk(self._make, places)
                self._give_up_if_silent(seat)
                return made_here
            chunk = [*map(np.array, seat.crops)]  # copied: the seat is used again
        finally:
            self._free.put(seat)
        chunk.append(np.array([-1 if label is None else label for label in labels], np.int64))
        readable = [label is not None for label in labels]
        mend_chunk(chunk, readable, self._make, places, good=self._good)
        return chunk

    def end(self) -> None:
        """Ends the processes, and the calls that wait for them."""
        self._ended = True
        for seat in self._seats[::SEATS]:
            seat.process.kill()
        until = time.monotonic() + _END_SECONDS
        for seat in self._seats[::SEATS]:
            _end_of(seat.process, seconds=until - time.monotonic())

    def _ask(self, seat: _Seat, places: range) -> list[int | None] | None:
        """The classes of a chunk that the process has put into its seat; None if it does not, or all has ended."""
        if seat.process.pid in self._retired:
            return None
        try:
            seat.socket.send([int(self._position_of(place)) for place in places])
            # Second by second: the time in which the system holds the whole job says nothing about a process.
            for _ in range(PATIENCE_SECONDS):
                if seat.socket.poll(1):
                    labels: list[int | None] = seat.socket.recv()
                    return labels
                if self._ended:
                    return None
        except (OSError, EOFError):
            if not self._ended:
                self._retire(seat.process, hangs=False)
        return None

    def _give_up_if_silent(self, seat: _Seat) -> None:
        """Takes the late answer of a process that lives; one that has none is asked for nothing any more."""
        if seat.process.pid in self._retired:
            return
        try:
            if seat.socket.poll(_GRACE_SECONDS):
                seat.socket.recv()
            elif not self._ended:
                self._retire(seat.process, hangs=True)
        except (OSError, EOFError):
            if not self._ended:
                self._retire(seat.process, hangs=False)

    def _retire(self, process: subprocess.Popen[bytes], *, hangs: bool) -> None:
        with self._lock:
            if process.pid in self._retired:
                return
            self._retired.add(process.pid)
            process.kill()  # whatever it still does is of no use
            if hangs:
                what = f"has not answered for {PATIENCE_SECONDS} s and is given up (process {process.pid})"
            else:
                code = _end_of(process, seconds=_END_SECONDS)
                what = f"is lost ({'it does not answer' if code is None else _in_words(code)})"
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"[yellow]warning[/] data.processes: one of {len(self._seats) // SEATS} processes that make crops "
                f"{what}. This process makes its share itself: the same crops, but slower. "
                "Started again, the run has all of them."
            )


def cpu_seconds() -> float:
    """CPU time of all threads of this process, and of the processes that make crops for it while they run."""
    ticks = sum(_ticks(seat.process.pid) for made in list(_made) for seat in made._seats[::SEATS])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0
    return int(user) + int(system)


def _start(shapes: Sequence[tuple[int, ...]], chunk: int) -> list[_Seat]:
    """The seats of a process that was started, and waits for its task."""
    pairs = [Pipe() for _ in range(SEATS)]
    # Memory of no file system: a container's /dev/shm may be small.
    memory = os.memfd_create("crops")
    try:
        os.ftruncate(memory, SEATS * chunk * sum(int(np.prod(shape)) for shape in shapes))
        theirs = [memory, *(end.fileno() for _, end in pairs)]
        process = subprocess.Popen(
            [sys.executable, "-m", "swav_tf.data.crop_child", *map(str, theirs)],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the trainer, which may need more crops to end well
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )
        places = seats_in(mmap.mmap(memory, 0), shapes, chunk)
    finally:
        os.close(memory)
        for _, end in pairs:
            end.close()
    return [_Seat(process, ours, crops) for (ours, _), crops in zip(pairs, places, strict=True)]


def _end_of(process: subprocess.Popen[bytes], *, seconds: float) -> int | None:
    """The exit code of a process that was killed; None if the system does not let go of it in time."""
    try:
        return process.wait(max(0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _in_words(code: int) -> str:
    """What the exit code of a process tells."""
    if code >= 0:
        return f"exit code {code}"
    memory = ", as the system does when memory is short" if -code == signal.SIGKILL else ""
    return f"ended by {signal.Signals(-code).name}{memory}"
