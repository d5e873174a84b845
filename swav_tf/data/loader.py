"""Batches of crops and of evaluation views as tf.data pipelines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.image_source import ImageSource
from swav_tf.data.order import CropsByPosition
from swav_tf.data.sources import read_image
from swav_tf.data.views import refuse
from swav_tf.data.workers import SLOTS, CropProcesses, largest_chunk
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.classifier import ClassifierRecipe
from swav_tf.recipe.data import Data, EvaluationView
from swav_tf.recipe.pretraining import Recipe

F = TypeVar("F", bound=Callable[..., Any])
_QUIET_SECONDS = 0.1  # a data set that needs another call makes it within microseconds
_open_calls: list[PythonCalls] = []
# AutoGraph would rewrite these functions, which needs time, and leave the source in /tmp when the process is killed.
_traced_as_written: Callable[[F], F] = tf.autograph.experimental.do_not_convert


class PythonCalls:
    """A data set's calls of a Python function. They must end before the data set or the interpreter does."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """`on_end` wakes the calls that wait for something."""
        self._on_end = on_end
        self._lock = threading.Lock()
        self._begun = self._finished = 0
        self._ended = False
        _open_calls.append(self)

    def mapped(
        self,
        function: Callable[[int], Sequence[npt.NDArray[Any]] | None],
        shapes: Sequence[tuple[int, ...]],
        types: Sequence[tf.DType],
    ) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
        """Return the function for `Dataset.map`. Once ended, or where it returns None, its results are zeros."""

        def call(number: int) -> Sequence[npt.NDArray[Any]]:
            with self._lock:
                self._begun += 1
            try:
                found = None if self._ended else function(int(number))
                if found is None:
                    found = [np.zeros(s, t.as_numpy_dtype) for s, t in zip(shapes, types, strict=True)]
                return found
            finally:
                with self._lock:
                    self._finished += 1

        @_traced_as_written
        def mapped(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
            tensors = tf.numpy_function(call, [number], types, stateful=False)
            for tensor, shape in zip(tensors, shapes, strict=True):
                tensor.set_shape(shape)
            return tuple(tensors)

        return mapped

    def stop(self) -> None:
        """Let further calls return at once."""
        self._ended = True
        self._on_end()

    def counts(self) -> tuple[int, int]:
        """Return how many calls have begun, and how many of them have finished."""
        return self._begun, self._finished


@contextmanager
def ended_after() -> Iterator[None]:
    """End the calls of all data sets made inside the block; their iterators must live until then.

    Wait until no call runs and no further one comes, because the buffers of the data sets are full. All are waited for
    together: each validation of a run has made a data set.
    """
    first = len(_open_calls)
    try:
        yield
    finally:
        made = _open_calls[first:]
        del _open_calls[first:]
        for calls in made:
            calls.stop()
        before: list[tuple[int, int]] = []
        while (now := [calls.counts() for calls in made]) != before or any(a != b for a, b in now):
            before = now
            time.sleep(_QUIET_SECONDS)


def training_batches(
    recipe: Recipe | ClassifierRecipe,
    source: ImageSource,
    *,
    steps_per_epoch: int,
    start_step: int,
    total_steps: int,
    workers: int,
    worker: int,
    replica_batch_size: int,
    bad_images: BadImages,
    labeled: bool = False,
) -> tf.data.Dataset:
    """Return the crops of one worker for the optimizer steps `start_step` to `total_steps` - 1.

    Accumulation divides each step's images into equal parts, one after the other, for any number of workers;
    worker w of W takes the w-th of W equal shares of each part. An image that cannot be read is replaced by the next
    one in the epoch's order that can, with random numbers of its own.

    Args:
        recipe: all settings.
        source: the training images, the same on every worker.
        steps_per_epoch: times the batch size at most len(source).
        start_step: first step, from 0.
        total_steps: steps of the complete run.
        workers: number of workers, W, which divides the batch size.
        worker: number of this worker, w, from 0.
        replica_batch_size: images of one element; it divides a worker's share of a step.
        bad_images: counts unreadable images.
        labeled: append the classes.

    Returns:
        Data set of tuples of static shape: per crop group a uint8 (replica_batch_size, count, size, size, 3), with
        `labeled` also the classes, int64 (replica_batch_size,).

    Raises:
        DataError: the recipe's processes do not start.
    """
    batch_size = recipe.train.batch_size
    share = batch_size // workers
    of_part = share // recipe.train.accumulation_steps
    crops = CropsByPosition(recipe, source, images_per_epoch=steps_per_epoch * batch_size, labeled=labeled)

    chunk, make, calls, parallel = _crop_calls(recipe, crops, bad_images, most=replica_batch_size)

    def chunk_at(number: int) -> list[npt.NDArray[Any]] | None:
        # Places count this worker's images from the first step of the run.
        places = range(number * chunk, (number + 1) * chunk)
        return make([p // of_part * of_part * workers + worker * of_part + p % of_part for p in places])

    shapes = [(chunk, *shape) for shape in (*crops.shapes, ())]
    mapped = calls.mapped(chunk_at, shapes, [tf.uint8] * len(crops.shapes) + [tf.int64])

    numbers = tf.data.Dataset.range(start_step * share // chunk, total_steps * share // chunk)
    chunks = numbers.map(mapped, num_parallel_calls=parallel, deterministic=True)
    chunks = chunks.batch(replica_batch_size // chunk, drop_remainder=True)
    batches = chunks.map(_joined if labeled else _without_labels)
    return batches.prefetch(recipe.data.prefetch_batches).with_options(_options(parallel))


def _crop_calls(
    recipe: Recipe | ClassifierRecipe, crops: CropsByPosition, bad_images: BadImages, *, most: int
) -> tuple[int, Callable[[Sequence[int]], list[npt.NDArray[Any]] | None], PythonCalls, int]:
    """Return the positions of a call (at most `most`), the function of a call, the calls, and how many run at once."""

    def row_at(position: int) -> list[Any]:
        made, label = crops.readable_at(position, bad_images)
        return [*made, np.int64(label)]

    def alone(positions: Sequence[int]) -> list[npt.NDArray[Any]] | None:
        return [np.expand_dims(array, 0) for array in row_at(positions[0])]

    if not recipe.data.processes:
        return 1, alone, PythonCalls(), recipe.data.threads or available_cores()
    chunk = largest_chunk(most)
    processes = CropProcesses(recipe.data.processes, crops, chunk=chunk, make=row_at, good=bad_images.good)
    return chunk, processes.get, PythonCalls(processes.end), processes.calls


@_traced_as_written
def _joined(*chunks: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Reshape each (chunks, images, ...) to (chunks * images, ...)."""
    return tuple(tf.reshape(part, (part.shape[0] * part.shape[1], *part.shape[2:])) for part in chunks)


@_traced_as_written
def _without_labels(*chunks: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return _joined(*chunks[:-1])


def made_ahead(data: Data, replica_batch_size: int) -> int:
    """Return the most elements of `training_batches` that are made before they are requested."""
    in_flight = data.processes * SLOTS * largest_chunk(replica_batch_size)
    return data.prefetch_batches + -(-in_flight // replica_batch_size)


def evaluation_batches(
    source: ImageSource,
    indices: Sequence[int] | npt.NDArray[np.int64],
    view: EvaluationView,
    batch_size: int,
    threads: int,
) -> tf.data.Dataset:
    """Return the evaluation views of the given images, in that order, uint8 (b, crop, crop, 3).

    The last b may be smaller than `batch_size`. The index -1 gives a black image, to fill up a batch. An image that
    cannot be read is an error: without it, labels and features would not match.
    """

    def view_of(index: int) -> list[npt.NDArray[Any]] | None:
        if index < 0:
            return None
        try:
            return [evaluation_view(read_image(source, index), view)]
        except (UndecodableImage, OSError) as error:
            refuse(source.image_name(index), str(error))

    mapped = PythonCalls().mapped(view_of, [(view.crop, view.crop, 3)], [tf.uint8])
    threads = threads or available_cores()
    images = tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
    first = _traced_as_written(lambda index: mapped(index)[0])
    images = images.map(first, num_parallel_calls=threads, deterministic=True)
    return images.batch(batch_size).prefetch(2).with_options(_options(threads))


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    # Nothing here is left to autotuning. Its thread can miss the wake-up at the end of an iterator, which then waits
    # for the rest of the thread's period, up to a minute: a worker lived on after a good end.
    options.autotune.enabled = False
    # Each worker already takes its own share; sharding again would drop images.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
