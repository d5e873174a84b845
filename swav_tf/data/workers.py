"""Make crops in processes of this machine, each with a Python lock of its own. Linux only."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from types import ModuleType
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from swav_tf.data.augment import Image
from swav_tf.data.order import CropsByPosition
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log

LARGEST_CHUNK: Final = 16  # images
SLOTS: Final = 2  # per process: while the trainer copies one chunk, the next is made
PATIENCE_SECONDS: Final = 60  # for a chunk; 16 images take about a second
_GRACE_SECONDS: Final = 10  # for the answer, once this process has made the chunk itself
_END_SECONDS: Final = 5  # for a killed process to be gone
_ATTEMPTS: Final = 3  # to get a chunk
_ALIGNMENT: Final = 64  # bytes, of arrays in shared memory
# Schedulers and terminals send these to all processes of a job; only the trainer handles them.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Chunk = list[npt.NDArray[Any]]  # per crop group (images, count, size, size, 3), then classes (images,)


def largest_chunk(images: int) -> int:
    """Return the largest number of at most LARGEST_CHUNK images that divides `images`."""
    return max(size for size in range(1, LARGEST_CHUNK + 1) if images % size == 0)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its running child processes."""
    seconds = time.process_time()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            seconds += sum(child.cpu_times()[:2])
    return seconds


class CropProcesses:
    """Crops from other processes, bit for bit those that this process would make.

    Processes that are killed or hang are replaced with a warning, and end the run if that does not help. `calls`
    concurrent calls of `get` keep all of them busy.
    """

    def __init__(
        self,
        count: int,
        crops: CropsByPosition,
        *,
        chunk: int,
        make: Callable[[int], list[Any]],
        good: Callable[[], None],
    ) -> None:
        """Start `count` processes that make `chunk` images together.

        `make` makes crop groups and class of a position in this process, where another one cannot; `good` is called for
        each image that a process could read.

        Raises:
            DataError: the processes do not start, or the system is not Linux.
        """
        if not hasattr(os, "memfd_create"):
            raise DataError(
                "data.processes needs Linux. Set it to 0 to make the crops in threads of this process."
            )
        self._count, self._make, self._good = count, make, good
        # Not in /dev/shm, which is small in containers and where a killed run would leave its crops.
        self._memory = os.fdopen(os.memfd_create("crops"), "r+b")
        self._memory.truncate(count * SLOTS * chunk * sum(int(np.prod(shape)) for shape in crops.shapes))
        self._slots = _slots_in(self._memory.fileno(), crops.shapes, chunk)
        self._crops = crops
        self._task = _shared_pickle((crops, chunk))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.calls = len(self._slots)
        for slot in range(self.calls):
            self._free.put(slot)
        self._lock, self._ended, self._lost = threading.Lock(), False, ""
        self._start()

    def get(self, positions: Sequence[int]) -> Chunk | None:
        """Return crops and classes at the positions, from any thread; None after `end`.

        Raises:
            DataError: processes are lost or hang again and again.
        """
        slot = self._free.get()
        # Here: only this process has the order.
        places = [self._crops.place(position) for position in positions]
        try:
            for _ in range(_ATTEMPTS):
                if self._ended:
                    return None
                executor = self._executor
                try:
                    labels = self._answer(executor.submit(_fill, slot, places), positions)
                except BrokenProcessPool:
                    self._replace(executor)
                    continue
                chunk: Chunk = [np.array(group) for group in self._slots[slot]]  # the slot is used again
                return self._completed(chunk, labels, positions)
        finally:
            self._free.put(slot)
        raise DataError(
            f"Crop processes were lost {_ATTEMPTS} times in a row ({self._lost}); data.processes is {self._count}. If "
            "memory is short, lower it; 0 uses threads."
        )

    def end(self) -> None:
        """End the processes, and the calls that wait for them."""
        self._ended = True
        with self._lock:
            self._kill()

    def _answer(self, future: Future[list[int | None]], positions: Sequence[int]) -> list[int | None]:
        """Wait for the classes of a chunk; kill the processes if they do not make what this process can make.

        Raises:
            BrokenProcessPool: a process was killed.
        """

        def is_done(seconds: int) -> bool:
            # Second by second: time during which the system stops all processes must not count.
            return any(wait([future], timeout=1).done for _ in range(seconds))

        while not is_done(PATIENCE_SECONDS):
            # A slow disk also delays this process, and is not a reason to kill others.
            for position in positions:
                self._make(position)
            if not is_done(_GRACE_SECONDS):
                pids = ", ".join(str(process.pid) for process in self._processes)
                log.warning(
                    f"data.processes: no crops for {PATIENCE_SECONDS} s from one of the processes {pids}."
                )
                self._kill()
        return future.result()

    def _completed(self, chunk: Chunk, labels: list[int | None], positions: Sequence[int]) -> Chunk:
        """Make what the process could not read: it may be readable now, or has a replacement."""
        chunk.append(np.array([-1 if label is None else label for label in labels], np.int64))
        for row, label in enumerate(labels):
            if label is not None:
                self._good()
                continue
            for group, one in zip(chunk, self._make(positions[row]), strict=True):
                group[row] = one
        return chunk

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(self._count)
        task, memory = (f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (self._task, self._memory))
        self._executor = ProcessPoolExecutor(
            self._count, context, initializer=_open, initargs=(task, memory, barrier)
        )
        try:
            with _quiet_children():
                ready = [self._executor.submit(_wait_for_all) for _ in range(self._count)]
            self._processes = list(self._executor._processes.values())
            self._first_lost: list[BaseProcess] = []
            self._watcher = threading.Thread(target=self._kill_others, args=(self._processes,), daemon=True)
            self._watcher.start()
            for future in ready:
                future.result()
        except (OSError, BrokenProcessPool) as error:
            self._processes = list(self._executor._processes.values())
            self._kill()
            reason = str(error) if isinstance(error, OSError) else "one ended while it started"
            raise DataError(
                f"{self._count} crop processes could not be started: {reason}. Lower data.processes, or set it to 0 to "
                "use threads."
            ) from error

    def _replace(self, executor: ProcessPoolExecutor) -> None:
        """Start new processes in place of those of a broken executor, unless another thread has done so."""
        with self._lock:
            if self._ended or executor is not self._executor:
                return
            self._watcher.join(_END_SECONDS)
            lost = self._first_lost
            self._kill()
            while any(process.exitcode is None for process in lost):
                time.sleep(0.01)  # the executor's thread is about to set it
            self._lost = ", ".join(f"process {p.pid} ({_in_words(p.exitcode or 0)})" for p in lost)
            log.warning(f"data.processes: lost {self._lost}. Restarting all; the crops stay the same.")
            self._start()

    def _kill_others(self, processes: list[BaseProcess]) -> None:
        """Kill all processes once one is lost: the executor waits for them, and they block its SIGTERM.

        From Python 3.12 on it holds a lock meanwhile that `submit` needs, so no caller could do this.
        """
        gone = connection.wait([process.sentinel for process in processes])
        self._first_lost = [process for process in processes if process.sentinel in gone]
        for process in processes:
            process.kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_SECONDS)


def _slots_in(memory: int, shapes: Sequence[tuple[int, ...]], chunk: int) -> list[list[Image]]:
    """Map the memory: per slot the crop groups of a chunk, (chunk, count, size, size, 3) each."""
    ends = np.cumsum([chunk * int(np.prod(shape)) for shape in shapes])
    return [
        [part.reshape(chunk, *shape) for part, shape in zip(np.split(slot, ends[:-1]), shapes, strict=True)]
        for slot in np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(-1, ends[-1])
    ]


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Start processes with signals blocked for good, and without importing the user's script and its TensorFlow."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shared_pickle(value: Any) -> IO[bytes]:
    """Return a file in memory with a pickled value, whose arrays lie behind the pickle, where `_unpickled` maps them.

    All processes share these pages: names, labels and places of 10^7 images are in memory once a machine.
    """
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    file = os.fdopen(os.memfd_create("task"), "w+b")
    parts: list[bytes | memoryview] = [pickled, *(array.raw() for array in arrays)]
    for part in (pickle.dumps([len(part) for part in parts]), *parts):
        file.write(part)
        file.write(bytes(-len(part) % _ALIGNMENT))
    file.flush()
    return file


def _unpickled(path: str) -> Any:
    """Return the value of a file of `_shared_pickle`; its arrays are read-only and not copied."""
    with open(path, "rb") as file:
        lengths = pickle.load(file)
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        end, parts = file.tell(), []
    for length in lengths:
        start = end + -end % _ALIGNMENT
        end = start + length
        parts.append(memory[start:end])
    return pickle.loads(parts[0], buffers=parts[1:])


# === In a crop process ===

_work: dict[str, Any] = {}


def _open(task: str, memory: str, barrier: Barrier) -> None:
    """Prepare a crop process."""
    os.setsid()  # no signals of the trainer's terminal; and Linux shares cores out by session, not by process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a source may import TensorFlow
    crops, chunk = _unpickled(task)
    with open(memory, "r+b") as file:
        slots = _slots_in(file.fileno(), crops.shapes, chunk)
    _work.update(crops=crops, slots=slots, barrier=barrier, readers=ThreadPoolExecutor(chunk))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _wait_for_all() -> None:
    """Wait until every process runs this: an executor starts no further process while one is idle."""
    _work["barrier"].wait()


def _fill(slot: int, places: Sequence[tuple[int, int]]) -> list[int | None]:
    """Put the crops of (epoch, image) into a slot; return their classes, None for what cannot be read.

    All images are read at once: a file on a network answers late, but many answer at a time.
    """
    crops, classes = _work["crops"], list[int | None]()
    reads = [_work["readers"].submit(crops.source.read, index) for _, index in places]
    for row, ((epoch, index), read) in enumerate(zip(places, reads, strict=True)):
        try:
            made, label = crops.made(read.result(), epoch=epoch, index=index)
        except Exception:  # the trainer then tries the same images and reports the error
            classes.append(None)
            continue
        for group, one in zip(_work["slots"][slot], made, strict=True):
            group[row] = one
        classes.append(label)
    return classes
