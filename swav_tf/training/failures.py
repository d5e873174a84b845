"""Explain the errors of TensorFlow that users can do something about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from swav_tf.plumbing.errors import DataError, SwavError, TransientError
from swav_tf.recipe.pretraining import Train
from swav_tf.training.cluster import Topology

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
            f"Out of memory at batch_size {train.batch_size} over {team.replicas} replica(s). "
            "Remedies: train.accumulation_steps=2 (or 4, 8: the same batch in parts), "
            "train.precision=mixed_float16, a smaller train.batch_size (in pretraining with a queue). "
            f"TensorFlow's error: {str(error)[:300]}"
        ) from error
    except tf.errors.OpError as error:
        if isinstance(error, COLLECTIVE_ERRORS) and team.workers > 1:
            raise WorkerEnded from error
        # The error of a tf.data function arrives as TensorFlow's, its message inside a stack trace.
        if meant := re.search(r"DataError: (.+)", str(error)):
            raise DataError(meant[1]) from None
        raise
