"""The number of images of a recipe."""

from __future__ import annotations

from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import Recipe

IMAGENET_IMAGES = 1_281_167


def names_data(recipe: Recipe) -> bool:
    """Return whether the recipe states its own images."""
    return recipe.data.kind == "digits" or bool(recipe.data.path)


def image_count(recipe: Recipe) -> int:
    """Return the number of the recipe's training images; ImageNet's if it names no data.

    Raises:
        UsageError: the images are not here, or are a TFDS data set, which would be downloaded.
    """
    data = recipe.data
    if not names_data(recipe):
        return IMAGENET_IMAGES
    try:
        if data.kind == "tfds":
            raise DataError("their number is not known without downloading them")
        return len(open_source(data))
    except DataError as error:
        raise UsageError(
            f"The number of images must be given for {recipe.name}: --images N. Its data are {data.kind} "
            f"{data.path or ''}: {error}"
        ) from error
