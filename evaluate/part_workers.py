"""Parts of features by several processes, of this machine or of a Ray cluster.

Each process opens the model and the images once, then makes one part after another. A process that dies is replaced,
and its part resumes from the rows on disk: nothing has to be known besides the folder of parts.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

from evaluate.feature_parts import Part
from evaluate.features import Extraction, images_done
from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.nvidia import visible_gpus
from swav_tf.plumbing.system import available_cores

DEATHS: Final = 3  # in a row, of the processes that make a part, before it counts as failed
POLL_SECONDS: Final = 1.0

Job = Callable[[], tuple[int, Callable[[Part], Extraction]]]
"""Opens the model and the images: returns the number of all images and the function that makes a part. Pickled."""


@dataclass(frozen=True)
class Devices:
    """What the processes compute on: a GPU each, or a share of the CPU cores each."""

    kind: str  # `cpu` or `gpu`
    count: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}"

    def environment(self, cores: int) -> dict[str, str]:
        """Return the variables that keep a process to its cores, and from GPUs if it has none."""
        hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if self.kind == "cpu" else {}
        return {"TF_NUM_INTRAOP_THREADS": str(cores), "TF_NUM_INTEROP_THREADS": str(cores)} | hidden


class WorkerLost(Exception):
    """Report that a process died."""


class Worker(Protocol):
    """A process, as seen from here."""

    def call(self, part: Part | None) -> Any:
        """Make a part; for None open model and images and return their number. Raises WorkerLost."""

    def kill(self) -> None:
        """End it."""


class Maker:
    """What such a process does."""

    def __init__(self, job: Job, environment: Mapping[str, str], folder: str) -> None:
        with contextlib.suppress(OSError):  # of relative paths, where the machines share the folder
            os.chdir(folder)
        os.environ.update(environment)  # read when TensorFlow and CUDA start
        self._job = job
        self._opened: tuple[int, Callable[[Part], Extraction]] | None = None

    def call(self, part: Part | None) -> Any:
        """Do what `Worker.call` asks for."""
        self._opened = self._opened or self._job()
        return self._opened[0] if part is None else self._opened[1](part)


def make_parts(
    starts: Sequence[Callable[[], Worker]],
    parts: Sequence[Part],
    on_progress: Callable[[int, int], None],
) -> list[Extraction]:
    """Make all parts, also if some fail; `on_progress` is called with the number of images that are done and of all.

    `starts` start each process, and again what replaces it.
    """
    team = _Team(parts)
    for start in starts[: len(parts)]:
        threading.Thread(target=team.drive, args=(start,), daemon=True).start()
    done: list[Extraction] = []
    failed: list[tuple[Part, Exception]] = []
    try:
        while len(done) + len(failed) < len(parts):
            with contextlib.suppress(queue.Empty):
                part, result = team.results.get(timeout=POLL_SECONDS)
                if part is None or isinstance(result, UsageError):  # holds for all parts
                    raise result
                if isinstance(result, Exception):
                    log.warning(f"part {part} failed: {result}")
                    failed.append((part, result))
                else:
                    done.append(result)
            if team.images:
                complete = sum(each.images + each.unreadable for each in done)
                on_progress(
                    complete + sum(images_done(part.base) for part in [*team.busy] if part), team.images
                )
    finally:
        team.end()
    if failed:
        part, error = failed[0]
        refusal = type(error) if isinstance(error, SwavError) else DataError
        raise refusal(
            f"{len(failed)} of {len(parts)} parts failed; run the same command again to compute them. Part {part}: "
            f"{error}"
        ) from error
    return done


class _Team:
    """The parts that are left, the processes that make them, and what these return."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.left = deque(parts)
        self.busy: set[Part | None] = set()
        self.images = 0
        self.results: queue.SimpleQueue[tuple[Part | None, Any]] = queue.SimpleQueue()
        self._workers: set[Worker] = set()
        self._ended = False

    def drive(self, start: Callable[[], Worker]) -> None:
        """Let a process make parts until none is left; run in a thread of its own."""
        worker, deaths = None, 0
        while self.left and not self._ended:
            part = None
            try:
                if worker is None:
                    worker = start()
                    self._workers.add(worker)
                    self.images = worker.call(None)
                part = self._take()  # not before the process is there: it may have to wait for its turn
                if part is not None:
                    self.results.put((part, worker.call(part)))
                deaths = 0
            except WorkerLost as lost:
                worker, deaths = None, deaths + 1
                if deaths == DEATHS:
                    died = f"{lost}; {deaths} processes in a row have died."
                    self.results.put(
                        (part, DataError(f"{died} If memory is short, lower --batch or --threads."))
                    )
                    deaths = 0
                elif not self._ended:
                    log.warning(f"{lost}. Starting another one.")
                    self.left.extendleft([part] if part else [])
            except Exception as error:
                self.results.put((part, error))
                if worker is None or part is None:
                    return
            finally:
                self.busy.discard(part)
        if worker is not None:
            worker.kill()

    def _take(self) -> Part | None:
        with contextlib.suppress(IndexError):  # another process was quicker
            part = self.left.popleft()
            self.busy.add(part)
            return part
        return None

    def end(self) -> None:
        """End all processes."""
        self._ended = True
        for worker in [*self._workers]:
            worker.kill()


# === Processes of this machine ===


class ProcessWorker:
    """A process of this machine."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        spawn = multiprocessing.get_context("spawn")  # TensorFlow and CUDA do not survive a fork
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, job, dict(environment)), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, part: Part | None) -> Any:
        """See `Worker`."""
        try:
            self._connection.send(part)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerLost(
                f"Process {self._process.pid} ended with code {self._process.exitcode}"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        """See `Worker`."""
        self._process.kill()


def _serve(connection: Connection, job: Job, environment: Mapping[str, str]) -> None:
    """Answer calls until the process that started this one ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    maker = Maker(job, environment, os.getcwd())
    while True:
        part = connection.recv()
        try:
            answer = maker.call(part)
        except Exception as error:
            answer = error
        connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def process_starts(
    job: Callable[[int], Job], devices: Devices, cores: int
) -> list[Callable[[], ProcessWorker]]:
    """Return what starts a process for each device; `gpu:N` are the first N visible ones.

    `job` is called with the cores of each process: 0 divides those of this machine.
    """
    cores = cores or max(1, available_cores() // devices.count)
    shared = devices.environment(cores)
    if devices.kind == "cpu":
        return [lambda: ProcessWorker(job(cores), shared)] * devices.count
    names = visible_gpus()
    if len(names) < devices.count:
        raise UsageError(
            f"--devices {devices} needs as many GPUs. Received: {len(names)} visible. Use fewer, or list them in "
            "CUDA_VISIBLE_DEVICES."
        )
    return [
        lambda name=name: ProcessWorker(job(cores), shared | {"CUDA_VISIBLE_DEVICES": name})  # type: ignore[misc]
        for name in names[: devices.count]
    ]


# === Actors of a Ray cluster ===


def ray_starts(job: Callable[[int], Job], devices: Devices, cores: int) -> list[Callable[[], RayWorker]]:
    """Connect to the cluster, or start one on this machine; return what starts an actor for each device.

    `job` is called with the cores of each actor: 0 is as many as the cluster has for all of them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = actor_cores(nodes, devices, cores)
    return [lambda: RayWorker(job(cores), devices, cores)] * devices.count


def actor_cores(nodes: Sequence[Mapping[str, float]], devices: Devices, cores: int) -> int:
    """Return the cores of each actor: the given number, or for 0 the largest with which all fit into the cluster.

    Ray would let actors wait forever, without an error, that fit nowhere. Actors read their images themselves, so no
    core has to be left for readers. Nodes have the resources `CPU` and `GPU`.
    """

    def room(cores: int) -> int:
        gpus = [node.get("GPU", 0) if devices.kind == "gpu" else float("inf") for node in nodes]
        return sum(int(min(node.get("CPU", 0) // cores, gpu)) for node, gpu in zip(nodes, gpus, strict=True))

    most = int(max(node.get("CPU", 0) for node in nodes))
    for number in [cores] if cores else range(most, 0, -1):
        if room(number) >= devices.count:
            return number
    have = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in ("CPU", "GPU"))
    least = cores or 1
    raise UsageError(
        f"--devices {devices} with {least} cores each must fit into the Ray cluster. Received: {have} on {len(nodes)} "
        f"nodes, room for {room(least)}. Use fewer devices or --threads, or start more nodes first."
    )


class RayWorker:
    """An actor, which Ray places where its cores and GPU are."""

    def __init__(self, job: Job, devices: Devices, cores: int) -> None:
        import ray

        gpus = int(devices.kind == "gpu")
        actor = ray.remote(num_cpus=cores, num_gpus=gpus)(Maker)
        self._actor = actor.remote(job, devices.environment(cores), os.getcwd())

    def call(self, part: Part | None) -> Any:
        """See `Worker`."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return ray.get(self._actor.call.remote(part))
        except RayActorError as error:
            raise WorkerLost(str(error).splitlines()[0].rstrip(".")) from error
        except RayTaskError as error:
            raise error.cause from None

    def kill(self) -> None:
        """See `Worker`."""
        import ray

        ray.kill(self._actor)
