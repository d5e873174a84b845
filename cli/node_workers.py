"""Run several workers on one machine; this process is the first and starts the others.

One process cannot feed eight fast GPUs (docs/many_machines.md).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli.progress import load_tensorflow_quietly
from swav_tf.plumbing.errors import SwavError, TransientError, report_of
from swav_tf.plumbing.log import show_log, show_message

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from swav_tf.training.rendezvous import ClusterAddress


@dataclass(frozen=True)
class Share:
    """The GPUs and cores of a worker, which its threads and processes inherit."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]

    def take(self) -> None:
        """Confine this process to them, before TensorFlow starts."""
        os.sched_setaffinity(0, self.cores)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)


def shares(count: int) -> list[Share]:
    """Divide the visible GPUs and the cores of this machine into contiguous ranges."""
    from swav_tf.plumbing.nvidia import visible_gpus

    gpus, cores = visible_gpus(), sorted(os.sched_getaffinity(0))
    if len(gpus) % count or len(cores) < count:
        raise click.UsageError(
            f"--workers-per-node must divide the GPUs, and leave each worker a core. Received: {count} workers, "
            f"{len(gpus)} visible GPUs, {len(cores)} cores."
        )

    def cut(items: list[str] | list[int], number: int) -> tuple[str | int, ...]:
        return tuple(items[len(items) * number // count : len(items) * (number + 1) // count])

    return [Share(cut(gpus, number), cut(cores, number)) for number in range(count)]  # type: ignore[arg-type]


@contextmanager
def node_workers(
    count: int, cluster: ClusterAddress | None, train: Callable[[ClusterAddress], object]
) -> Iterator[ClusterAddress | None]:
    """Start the other workers of this machine; yield the address of this process, which must then train as well.

    `cluster` is the address of this machine among others, None for that of the SLURM task, if there is one; each of the
    `count` workers of a machine calls `train`, which is pickled, with its own address.
    """
    if count == 1:
        yield cluster
        return
    from swav_tf.training.rendezvous import ClusterAddress, free_port, slurm_address, slurm_tasks

    own, *others = shares(count)
    if cluster is None and slurm_tasks(os.environ) > 1:
        cluster = slurm_address(os.environ, has_gpus=bool(own.gpus))
    node = cluster or ClusterAddress(1, 0, f"127.0.0.1:{free_port()}")
    places = [
        ClusterAddress(node.nodes * count, node.node_rank * count + number, node.master)
        for number in range(count)
    ]
    spawn = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    workers = [
        spawn.Process(target=_work, args=(share, place, train))
        for share, place in zip(others, places[1:], strict=True)
    ]
    for worker in workers:
        worker.start()
        threading.Thread(target=_end_with, args=(worker, workers), daemon=True).start()
    own.take()
    try:
        yield places[0]
    except BaseException:
        for worker in workers:  # they may still wait for this one
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.join()


def _end_with(worker: SpawnProcess, workers: Sequence[SpawnProcess]) -> None:
    """End all workers of this machine if one fails while this process waits for it; later the heartbeat notices."""
    from swav_tf.training.rendezvous import waiting

    worker.join()
    if code := worker.exitcode:
        waiting.wait()
        show_message(
            "Error: another worker of this machine ended before all workers had met; its own message gives the reason."
        )
        for other in workers:
            other.terminate()
        os._exit(code if code > 0 else TransientError.exit_code)  # nothing has to be saved


def _work(share: Share, place: ClusterAddress, train: Callable[[ClusterAddress], object]) -> None:
    share.take()
    show_log(logging.WARNING)
    load_tensorflow_quietly()
    try:
        train(place)
    except SwavError as error:
        show_message(report_of(error))
        sys.exit(error.exit_code)
