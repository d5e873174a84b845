"""Which image a run reads at which position, and its crops: a permutation per epoch, given seed and epoch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from swav_tf.data.augment import Image
from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.sources import ImageSource, read_image
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.classifier import ClassifierRecipe
from swav_tf.recipe.pretraining import Recipe

_KEY = 2**64 - 1  # not the number of any image: separates this random stream from the crops'


@lru_cache(maxsize=2)  # the threads work on one epoch, or on two where one ends
def epoch_order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the images 0..count-1 in the order of one epoch, (count,), read-only."""
    generator = np.random.Philox(
        key=np.array([seed, _KEY], np.uint64), counter=np.array([0, 0, 0, epoch], np.uint64)
    )
    order = np.random.Generator(generator).permutation(count)
    order.setflags(write=False)
    return order


class CropsByPosition:
    """The crops of the image at a position, the same on every machine and in every process.

    Attributes:
        shapes: of the crop groups, (count, size, size, 3) each; all uint8.
        images_per_epoch: positions of an epoch.
    """

    def __init__(
        self,
        recipe: Recipe | ClassifierRecipe,
        source: ImageSource,
        *,
        images_per_epoch: int,
        labelled: bool = False,
    ) -> None:
        self.shapes: list[tuple[int, ...]] = [(g.count, g.size, g.size, 3) for g in recipe.crops]
        self.images_per_epoch = images_per_epoch
        self._source, self._seed, self._labelled = source, recipe.train.seed, labelled
        self._multicrop = MultiCrop(recipe.crops, recipe.augment)

    def at(self, position: int, *, attempt: int = 0) -> tuple[list[Image], int]:
        """Return crops and class (-1 without) of the image `attempt` places after a position of the order.

        Raises:
            UndecodableImage, OSError: it cannot be read.
        """
        index = self._index_at(position, attempt)
        epoch = position // self.images_per_epoch
        image = read_image(self._source, index)
        crops = self._multicrop(image, seed=self._seed, epoch=epoch, index=index, attempt=attempt)
        return crops, self._source.label(index) if self._labelled else -1

    def readable_at(self, position: int, bad_images: BadImages) -> tuple[list[Image], int]:
        """Return the same of the first image from a position on that can be read, and count the others.

        Raises:
            DataError: none can be read, or too many cannot.
        """
        for attempt in range(len(self._source)):
            try:
                found = self.at(position, attempt=attempt)
            except (UndecodableImage, OSError) as error:
                name = self._source.image_name(self._index_at(position, attempt))
                bad_images.bad(name, str(error))
                continue
            bad_images.good()
            return found
        raise DataError("None of the images can be read.")

    def _index_at(self, position: int, attempt: int) -> int:
        epoch, place = divmod(position, self.images_per_epoch)
        order = epoch_order(len(self._source), seed=self._seed, epoch=epoch)
        return int(order[(place + attempt) % len(self._source)])
