"""How a job ends that cannot continue: errors that users can act on, and in all workers if one is lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from swav_tf.plumbing.errors import DataError, SwavError, TransientError
from swav_tf.plumbing.names import counted
from swav_tf.recipe.pretraining import Train
from swav_tf.training.checkpointing import StoppedBySignal
from swav_tf.training.cluster import Topology
from swav_tf.training.heartbeat import Heartbeat, Loss, WorkerLost
from swav_tf.training.rendezvous import Meeting
from swav_tf.training.stopping import StoppedEarly, exit_now, stoppable

# In which a worker that is asked to stop must leave TensorFlow; schedulers allow 30 s and more.
STOP_SECONDS = 5.0
# What a collective raises when another worker has ended or is silent, or when it was aborted.
COLLECTIVE_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class WorkerEnded(TransientError):
    """Report that another worker has ended, without knowing which."""

    def __init__(self) -> None:
        super().__init__(
            "Another worker has exited; its own error gives the reason. The last checkpoint is kept: start the same "
            "command on all machines to resume."
        )


@contextmanager
def explained_failures(train: Train, team: Topology) -> Iterator[None]:
    """Replace TensorFlow's errors about memory, unreadable images and lost workers.

    Raises:
        SwavError: in their place; other errors pass unchanged.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise SwavError(
            f"Out of memory at batch_size {train.batch_size} over {counted(team.replicas, 'replica')}. "
            "Try train.accumulation_steps=2 (or 4, 8: the same batch in parts), train.precision=mixed_float16, or a "
            "smaller train.batch_size (when pretraining, together with a queue). "
            f"TensorFlow's error: {str(error)[:300]}"
        ) from error
    except tf.errors.OpError as error:
        if isinstance(error, COLLECTIVE_ERRORS) and team.workers > 1:
            raise WorkerEnded from error
        # The error of a tf.data function arrives as TensorFlow's, its message inside a stack trace.
        if meant := re.search(r"DataError: (.+)", str(error)):
            raise DataError(meant[1]) from None
        raise


@contextmanager
def watched(meeting: Meeting | None, timeout_seconds: float) -> Iterator[None]:
    """End this worker within `timeout_seconds` after the loss of another.

    What waits for the others is aborted, so that this process leaves as after any other error; if it does not
    within the same time again, it is killed. All workers must enter together, as soon as there is a strategy; inside,
    `explained_failures` turns the errors of collectives into `WorkerEnded`.
    SIGTERM, SIGINT and SIGHUP end this worker within seconds, except while `Checkpointing` handles them. Error messages
    begin with the number of this worker. Without a `meeting` there are no others; 0 seconds: no heartbeat.

    Raises:
        WorkerLost: another worker died, hangs, lost its network, or failed.
        WorkerEnded: the same, of an unknown worker.
        StoppedEarly: this worker was asked to stop while it was not training.
    """
    if meeting is None:
        yield
        return
    watch = _Watch(meeting, timeout_seconds)
    try:
        with watch.watching():
            yield
    except SwavError as error:
        watch.number(error)
        raise


class _Watch:
    def __init__(self, meeting: Meeting, timeout_seconds: float) -> None:
        self.meeting, self.timeout_seconds = meeting, timeout_seconds
        self.ended = threading.Event()
        self.heartbeat: Heartbeat | None = None

    def number(self, error: SwavError) -> None:
        """Let a message begin with this worker's number: several workers may write into one log."""
        error.args = (f"worker {self.meeting.rank} of {len(self.meeting.workers)}: {error}",)

    @contextmanager
    def watching(self) -> Iterator[None]:
        if self.timeout_seconds:
            self.heartbeat = Heartbeat(
                self.meeting, timeout_seconds=self.timeout_seconds, on_loss=self._on_loss
            )
        try:
            with stoppable(self._on_stop):
                yield
        except StoppedBySignal:
            self._leave()  # the others stop at the same step
            raise
        except BaseException as error:
            self._raise_loss(error)
            raise
        else:
            self._leave()
        finally:
            self.ended.set()

    def _raise_loss(self, error: BaseException) -> None:
        """Raise the loss that an error follows from; else send the error to the others."""
        heartbeat = self.heartbeat
        if heartbeat is None:
            return
        if isinstance(error, WorkerEnded):
            heartbeat.lost.wait(self.timeout_seconds)  # TensorFlow may have noticed first
        if heartbeat.loss is not None and isinstance(error, (WorkerEnded, tf.errors.OpError)):
            heartbeat.leave(heartbeat.loss)
            raise WorkerLost(heartbeat.loss) from error
        known = isinstance(error, SwavError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        heartbeat.leave(heartbeat.failure(message, getattr(error, "exit_code", 1) if known else 1))

    def _on_loss(self, loss: Loss) -> None:
        self._end(WorkerLost(loss), self.timeout_seconds, loss)

    def _on_stop(self, error: StoppedEarly) -> None:
        farewell = self.heartbeat.failure(str(error), error.exit_code) if self.heartbeat else None
        self._end(error, STOP_SECONDS, farewell)

    def _end(self, error: SwavError, seconds: float, farewell: Loss | None) -> None:
        """Call the main thread back from a collective, and end the process if it does not come in time."""
        # From here on no collective waits; each raises UnavailableError.
        tf_context.context().abort_collective_ops(tf.errors.UNAVAILABLE, str(error))
        if not self.ended.wait(seconds):
            self._leave(farewell)
            self.number(error)
            exit_now(error)

    def _leave(self, farewell: Loss | None = None) -> None:
        if self.heartbeat:
            self.heartbeat.leave(farewell)
