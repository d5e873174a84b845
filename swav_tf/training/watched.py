"""A job of several workers under the watch of `worker_watch`: the loss of one ends all the others, in words."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from swav_tf.plumbing.errors import SwavError, TransientError, UsageError
from swav_tf.recipe.pretraining import Train
from swav_tf.training.checkpointing import StoppedBySignal
from swav_tf.training.cluster import Topology, mean_over_workers, topology, worker_addresses
from swav_tf.training.heartbeat import Loss, WorkerLost, WorkerWatch
from swav_tf.training.rendezvous import split_address
from swav_tf.training.stopping import StoppedEarly, stoppable

# What a collective raises when a peer has gone or is silent, or when it was aborted.
COLLECTIVE_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


# How long a worker that is asked to stop may take to come out of what it does; schedulers give 30 s and more.
STOP_SECONDS = 5.0


class WorkerEnded(TransientError):
    """TensorFlow says that another worker has ended, not which."""

    def __init__(self) -> None:
        super().__init__(
            "Another worker has ended; its own message says why. The last checkpoint is kept: start the same command "
            "on all machines to go on."
        )


@contextmanager
def watched(strategy: tf.distribute.Strategy, train: Train) -> Iterator[None]:
    """Inside, the loss of another worker is noticed within `train.worker_timeout_seconds` and ends this one.

    What waits for the others is aborted, so that this process leaves as after any other error. If it does
    not within the same time again, it is ended where it stands. All workers must come here together, as soon as
    there is a strategy. SIGTERM and SIGINT end this worker within seconds, but while `Checkpointing` listens.

    Whatever error leaves it tells which worker it is of.

    Raises:
        WorkerLost: another worker died, hangs, lost its network, or failed.
        WorkerEnded: the same, and nobody knows which.
        StoppedEarly: this worker was asked to stop, and trained nothing.
    """
    team = topology(strategy)
    if team.workers == 1:
        yield
        return
    try:
        with (_watching if train.worker_timeout_seconds else _unwatched)(strategy, team, train):
            yield
    except SwavError as error:
        # Several workers may write into one log.
        error.args = (f"worker {team.worker} of {team.workers}: {error}",)
        raise
    except COLLECTIVE_ERRORS as error:
        ended = WorkerEnded()
        ended.args = (f"worker {team.worker} of {team.workers}: {ended}",)
        raise ended from error


@contextmanager
def _unwatched(strategy: tf.distribute.Strategy, team: Topology, train: Train) -> Iterator[None]:
    ended = threading.Event()
    try:
        with stoppable(lambda error: _end(team, error, ended, STOP_SECONDS)):
            _ports(strategy, team, 0)
            yield
    finally:
        ended.set()


def _ports(strategy: tf.distribute.Strategy, team: Topology, mine: int) -> list[int]:
    """Where each worker's watch is found; 0 of all where none watches. All workers must ask together.

    Raises:
        UsageError: some watch and some do not; on all workers.
    """
    table = [float(mine) if worker == team.worker else 0.0 for worker in range(team.workers)]
    ports = [round(mean * team.workers) for mean in mean_over_workers(strategy, table)]
    without = [worker for worker, port in enumerate(ports) if not port]
    if 0 < len(without) < team.workers:
        raise UsageError(
            "train.worker_timeout_seconds must be 0 on all workers or on none. Received: 0 on worker(s) "
            f"{', '.join(map(str, without))} of {team.workers}. Give the same on every machine."
        )
    return ports


@contextmanager
def _watching(strategy: tf.distribute.Strategy, team: Topology, train: Train) -> Iterator[None]:
    ended = threading.Event()

    def lost(loss: Loss) -> None:
        _end(team, WorkerLost(loss), ended, train.worker_timeout_seconds, lambda: watch.leave(loss))

    def stopped(error: StoppedEarly) -> None:
        _end(
            team, error, ended, STOP_SECONDS, lambda: watch.leave(watch.failure(str(error), error.exit_code))
        )

    watch = WorkerWatch(worker=team.worker, timeout_seconds=train.worker_timeout_seconds, on_loss=lost)
    try:
        with stoppable(stopped):
            ports = _ports(strategy, team, watch.port)
            hosts = [split_address(address)[0] for address in worker_addresses(strategy)]
            watch.start(list(zip(hosts, ports, strict=True)))
            yield
    except StoppedBySignal:
        watch.leave()  # the others stop at the same step
        raise
    except BaseException as error:
        if isinstance(error, (WorkerEnded, *COLLECTIVE_ERRORS)):
            watch.lost.wait(train.worker_timeout_seconds)  # TensorFlow may have seen it first
        if watch.loss is not None and isinstance(error, (WorkerEnded, tf.errors.OpError)):
            watch.leave(watch.loss)
            raise WorkerLost(watch.loss) from error
        if isinstance(error, COLLECTIVE_ERRORS):
            error = WorkerEnded()
        known = isinstance(error, SwavError)
        said = str(error) if known else f"{type(error).__name__}: {error}"
        watch.leave(watch.failure(said, getattr(error, "exit_code", 1) if known else 1))
        raise
    else:
        watch.leave()
    finally:
        ended.set()


def _end(
    team: Topology,
    error: SwavError,
    ended: threading.Event,
    seconds: float,
    say_farewell: Callable[[], None] = lambda: None,
) -> None:
    """Calls the main thread back from the others, and ends the process if it does not come in time."""
    # From here on no collective waits any more; each raises UnavailableError.
    tf_context.context().abort_collective_ops(tf.errors.UNAVAILABLE, str(error))
    if not ended.wait(seconds):
        say_farewell()
        print(f"Error: worker {team.worker} of {team.workers}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
