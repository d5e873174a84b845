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

from swav_tf.data.augment import Image
from swav_tf.data.bad_images import BadImages
from swav_tf.data.crop_child import SEATS
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.order import CropsByPosition
from swav_tf.data.sources import ImageSource, read_image
from swav_tf.data.workers import CropProcesses, largest_chunk
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.classifier import ClassifierRecipe
from swav_tf.recipe.pretraining import Data, EvaluationView, Recipe

Result = TypeVar("Result")

_QUIET_SECONDS = 0.1  # a data set that wants another call makes it within microseconds
_made: list[PythonCalls] = []


class PythonCalls:
    """Counts the calls of a data set's function, and answers them with `nothing` once they are ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._begun = 0
        self._running = 0
        self._at_end: list[Callable[[], None]] = []
        _made.append(self)

    def at_end(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when the calls are ended, for those that wait for something."""
        self._at_end.append(wake)

    def counted(
        self, function: Callable[[int], Result], nothing: Callable[[], Result]
    ) -> Callable[[int], Result]:
        """The function for `tf.numpy_function`; `nothing()` has the shapes of a result."""

        def call(argument: int) -> Result:
            with self._lock:
                self._begun += 1
                self._running += 1
            try:
                return nothing() if self._ended else function(argument)
            finally:
                with self._lock:
                    self._running -= 1

        return call

    def end(self) -> None:
        """Returns when no call runs and none comes any more: the data set's buffers are full."""
        self._ended = True
        for wake in self._at_end:
            wake()
        begun, quiet_since = -1, time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_SECONDS:
            time.sleep(0.01)
            with self._lock:
                if self._running or self._begun != begun:
                    begun, quiet_since = self._begun, time.monotonic()


@contextmanager
def ended_after() -> Iterator[None]:
    """Ends the calls of all data sets made inside; their iterators must live until then."""
    before = len(_made)
    try:
        yield
    finally:
        for calls in _made[before:]:
            calls.end()
        del _made[before:]


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
    labelled: bool = False,
) -> tf.data.Dataset:
    """The crops of one worker for optimiser steps `start_step` to `total_steps` - 1.

    Worker w of W takes the w-th of W equal runs of each step's images, and hands them out
    in parts of `replica_batch_size`. An image that cannot be read gives its place to the
    next one in the epoch's order that can, cut by random numbers of its own.

    Args:
        recipe: gives crops, augmentation, batch size, seed, prefetch and who makes the crops.
        source: the training images, the same on every worker.
        steps_per_epoch: optimiser steps of an epoch; times the batch size at most len(source).
        start_step: first step, from 0.
        total_steps: steps of the whole run.
        workers: number of workers, W.
        worker: number of this worker, from 0.
        replica_batch_size: images of one element.
        bad_images: counts unreadable images, and ends the run when they are too many.
        labelled: the classes of the images are wanted too.

    Returns:
        Data set of tuples, for each crop group a uint8 (replica_batch_size, count, size, size, 3),
        of static shape, then with `labelled` the classes, int64 (replica_batch_size,).
        When it fails, `bad_images.fatal` is the error to show if it is set.

    Raises:
        ValueError: if the batch size cannot be divided so, or an epoch has too few images.
        DataError: the processes of the recipe do not start.
    """
    batch_size = recipe.train.batch_size
    share, rest = divmod(batch_size, workers)
    if rest or share % replica_batch_size:
        raise ValueError(
            f"the batch size must be a multiple of workers x replica_batch_size; got {batch_size}, {workers} "
            f"and {replica_batch_size}"
        )
    images_per_epoch = steps_per_epoch * batch_size
    if images_per_epoch > len(source):
        raise ValueError(
            f"an epoch takes each image at most once; got {steps_per_epoch} steps of {batch_size} from "
            f"{len(source)} images"
        )
    crops = CropsByPosition(recipe, source, images_per_epoch=images_per_epoch, labelled=labelled)
    calls = PythonCalls()

    # `place` counts this worker's images from the run's first step on; numbers and tensors alike.
    def position_of(place: Any) -> Any:
        return place // share * batch_size + worker * share + place % share

    def row_at(place: int) -> list[Any]:
        made, label = crops.readable_at(position_of(place), good=bad_images.good, bad=bad_images.bad)
        return [*made, np.int64(label)]

    threads = recipe.data.threads or available_cores()
    first, last = start_step * share, total_steps * share
    if not recipe.data.processes:
        places = tf.data.Dataset.range(first, last)
        made = _from_python(row_at, [*crops.shapes, ()], calls, labelled=labelled)
        images = places.map(made, num_parallel_calls=threads, deterministic=True)
        batches = images.batch(replica_batch_size, drop_remainder=True)
    else:
        chunk = largest_chunk(replica_batch_size)
        others = CropProcesses(
            recipe.data.processes, crops, position_of, row_at, chunk=chunk, good=bad_images.good
        )
        threads = others.calls
        calls.at_end(others.end)
        shapes = [(chunk, *shape) for shape in (*crops.shapes, ())]
        made = _from_python(others.get, shapes, calls, labelled=labelled)
        numbers = tf.data.Dataset.range(first // chunk, last // chunk)
        chunks = numbers.map(made, num_parallel_calls=threads, deterministic=True)
        batches = chunks.batch(replica_batch_size // chunk, drop_remainder=True).map(_joined)
    return batches.prefetch(recipe.data.prefetch_batches).with_options(_options(threads))


def made_ahead(data: Data, replica_batch_size: int) -> int:
    """Elements of `training_batches` that are made before anybody asks for them, at most."""
    in_flight = data.processes * SEATS * largest_chunk(replica_batch_size)
    return data.prefetch_batches + -(-in_flight // replica_batch_size)


def _from_python(
    function: Callable[[int], list[Any] | None],
    shapes: Sequence[tuple[int, ...]],
    calls: PythonCalls,
    *,
    labelled: bool,
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """A function of Python for `Dataset.map`: crop groups, uint8, and with `labelled` classes, int64."""
    types = [tf.uint8] * (len(shapes) - 1) + [tf.int64]

    def nothing() -> list[Any]:
        return [np.zeros(shape, kind.as_numpy_dtype) for shape, kind in zip(shapes, types, strict=True)]

    counted = calls.counted(lambda number: function(number) or nothing(), nothing)

    def mapped(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        tensors = tf.numpy_function(counted, [number], types, stateful=False)
        for tensor, shape in zip(tensors, shapes, strict=True):
            tensor.set_shape(shape)
        return tuple(tensors) if labelled else tuple(tensors[:-1])

    return mapped


def _joined(*chunks: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Tensors (chunks, images, ...) as (chunks * images, ...)."""
    return tuple(tf.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:])) for x in chunks)


def evaluation_batches(
    source: ImageSource,
    indices: Sequence[int] | npt.NDArray[np.int64],
    view: EvaluationView,
    batch_size: int,
    threads: int,
) -> tf.data.Dataset:
    """The evaluation views of the given images, in that order, uint8 (b, crop, crop, 3).

    Every b is `batch_size` but the last, which is what remains. The index -1 gives a black
    image, for filling up a batch.

    An image that cannot be read is an error: leaving it out would shift the labels
    against the features.
    """

    def view_of(index: int) -> Image:
        if index < 0:
            return np.zeros((view.crop, view.crop, 3), np.uint8)
        try:
            return evaluation_view(read_image(source, int(index)), view)
        except (UndecodableImage, OSError) as error:
            raise DataError(f"{source.image_name(int(index))} cannot be read: {error}") from error

    counted = PythonCalls().counted(view_of, lambda: np.zeros((view.crop, view.crop, 3), np.uint8))

    def view_tensor(index: tf.Tensor) -> tf.Tensor:
        image = tf.numpy_function(counted, [index], tf.uint8, stateful=False)
        image.set_shape((view.crop, view.crop, 3))
        return image

    threads = threads or available_cores()
    images = tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
    images = images.map(view_tensor, num_parallel_calls=threads, deterministic=True)
    return images.batch(batch_size).prefetch(2).with_options(_options(threads))


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    # Each worker already takes its own share; sharding again would drop images.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
