"""The image and its crops at each position of a run: a permutation per epoch, given seed and epoch."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from swav_tf.data.augment import Image
from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import UndecodableImage, decode
from swav_tf.data.image_source import ImageSource
from swav_tf.data.multicrop import MultiCrop
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.classifier import ClassifierRecipe
from swav_tf.recipe.pretraining import Recipe

_KEY = 2**64 - 1  # not the number of any image: separates this random stream from the crops'
_order_lock = threading.Lock()


def epoch_order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.signedinteger]:
    """Return the images 0..count-1 in the order of one epoch, (count,), read-only."""
    with _order_lock:  # one thread computes it, the others wait
        return _epoch_order(count, seed, epoch)


@lru_cache(maxsize=2)  # the threads work on one epoch, or on two where one ends
def _epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.signedinteger]:
    generator = np.random.Philox(
        key=np.array([seed, _KEY], np.uint64), counter=np.array([0, 0, 0, epoch], np.uint64)
    )
    small = np.int32 if count < 2**31 else np.int64  # 2 x 4 bytes an image stay in memory
    order: npt.NDArray[np.signedinteger] = np.arange(count, dtype=np.dtype(small))
    np.random.Generator(generator).shuffle(order)
    order.setflags(write=False)
    return order


class CropsByPosition:
    """The crops of the image at a position, the same on every machine and in every process.

    Attributes:
        source: the images.
        shapes: of the crop groups, (count, size, size, 3) each; all uint8.
        images_per_epoch: positions of an epoch.
    """

    def __init__(
        self,
        recipe: Recipe | ClassifierRecipe,
        source: ImageSource,
        *,
        images_per_epoch: int,
        labeled: bool = False,
    ) -> None:
        self.shapes: list[tuple[int, ...]] = [(g.count, g.size, g.size, 3) for g in recipe.crops]
        self.images_per_epoch = images_per_epoch
        self.source, self._seed, self._labeled = source, recipe.train.seed, labeled
        self._multicrop = MultiCrop(recipe.crops, recipe.augment)

    def at(self, position: int, *, attempt: int = 0) -> tuple[list[Image], int]:
        """Return crops and class (-1 without) of the image `attempt` places after a position of the order.

        Raises:
            UndecodableImage, OSError: it cannot be read.
        """
        epoch, index = self.place(position, attempt=attempt)
        return self.made(self.source.read(index), epoch=epoch, index=index, attempt=attempt)

    def place(self, position: int, *, attempt: int = 0) -> tuple[int, int]:
        """Return the epoch of a position and the number of the image `attempt` places after it."""
        epoch, place = divmod(position, self.images_per_epoch)
        order = epoch_order(len(self.source), seed=self._seed, epoch=epoch)
        return epoch, int(order[(place + attempt) % len(self.source)])

    def made(
        self, data: bytes | Image, *, epoch: int, index: int, attempt: int = 0
    ) -> tuple[list[Image], int]:
        """Return crops and class of image `index`, given what its source returned."""
        image = data if isinstance(data, np.ndarray) else decode(data, self.source.decoding)
        crops = self._multicrop(image, seed=self._seed, epoch=epoch, index=index, attempt=attempt)
        return crops, self.source.label(index) if self._labeled else -1

    def readable_at(self, position: int, bad_images: BadImages) -> tuple[list[Image], int]:
        """Return the same for the first readable image from a position on, and count those before it.

        Raises:
            DataError: none can be read, or too many cannot.
        """
        for attempt in range(len(self.source)):
            try:
                found = self.at(position, attempt=attempt)
            except (UndecodableImage, OSError) as error:
                name = self.source.image_name(self.place(position, attempt=attempt)[1])
                bad_images.bad(name, str(error))
                continue
            bad_images.good()
            return found
        raise DataError("None of the images can be read. Run `swav-tf data check` to see why.")
