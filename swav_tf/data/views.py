"""Evaluation views of images, decoded in threads: the input of all feature extraction."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.image_source import ImageSource
from swav_tf.data.sources import read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.parallel import map_ahead
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.data import EvaluationView


@dataclass(frozen=True)
class ViewedImage:
    """An image as the model sees it, or the reason why it cannot be read."""

    index: int  # in the source
    name: str  # its printable name there
    label: int  # -1 for none
    view: Image | None  # uint8 (crop, crop, 3)
    reason: str | None


def view_images(
    source: ImageSource, indices: Iterable[int], view: EvaluationView, *, threads: int = 0, ahead: int = 256
) -> Generator[ViewedImage, None, None]:
    """Yield the views of the images at `indices`, in that order.

    `threads` decode (0: one per core), at most `ahead` images in advance, which bounds the memory.
    """

    def read(index: int) -> ViewedImage:
        index = int(index)  # may be NumPy's
        name = printable(source.image_name(index))
        try:
            shown = evaluation_view(read_image(source, index), view)
            return ViewedImage(index, name, source.label(index), shown, None)
        except (UndecodableImage, OSError) as error:
            return ViewedImage(index, name, -1, None, printable(str(error)))

    return map_ahead(read, indices, threads=threads or available_cores(), ahead=ahead)


def refuse(name: str, reason: str) -> NoReturn:
    """Raise DataError for an image that cannot be read: without it, features and labels would not match."""
    raise DataError(f"{printable(name)} cannot be read: {printable(reason)}. Repair or remove it.")


def view_batches(
    source: ImageSource,
    indices: Iterable[int],
    view: EvaluationView,
    batch_size: int,
    *,
    threads: int = 0,
    unreadable: Callable[[str, str], None] = refuse,
) -> Generator[list[ViewedImage], None, None]:
    """Yield the readable images of each `batch_size` indices in turn; what a batch contains depends on nothing else.

    A batch is smaller if it is the last one or has unreadable images, with whose names and reasons `unreadable` is
    called; without a readable one it is left out.
    """
    batch: list[ViewedImage] = []
    with closing(view_images(source, indices, view, threads=threads, ahead=2 * batch_size)) as images:
        for number, image in enumerate(images, start=1):
            if image.view is None:
                unreadable(image.name, image.reason or "")
            else:
                batch.append(image)
            if number % batch_size == 0 and batch:
                yield batch
                batch = []
    if batch:
        yield batch


def stack_views(batch: Sequence[ViewedImage]) -> np.ndarray:
    """Return the views of readable images, uint8 (n, crop, crop, 3)."""
    return np.stack([image.view for image in batch if image.view is not None])
