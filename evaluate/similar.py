"""The images of a feature file that are nearest to one image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from evaluate.backends.backend import Backend
from evaluate.feature_file import FeatureFile
from evaluate.images import ImageSet, open_images, thumbnail
from evaluate.knn import check_same_model
from evaluate.search import Searchable
from swav_tf.data import storage
from swav_tf.data.augment import Image
from swav_tf.data.decode import Decoding, UndecodableImage, decode, evaluation_view
from swav_tf.data.folders import NamedImages
from swav_tf.data.pictures import scaled, shortened
from swav_tf.data.sources import contents_sha256, fingerprint
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log_once
from swav_tf.plumbing.names import printable
from swav_tf.recipe.data import Data

SIDE: Final = 144  # of an image in the picture, pixels
COLUMNS: Final = 6
GAP, LINE = 10, 16  # between images, and from one line of text to the next


def query_view(path: Path, model: Backend) -> Image:
    """Read an image file in the model's input view, uint8 (crop, crop, 3)."""
    try:
        return evaluation_view(decode(path.read_bytes(), Decoding.of(model.data)), model.input_view)
    except UndecodableImage as error:
        raise DataError(f"{path} must be an image: {error}") from error
    except OSError as error:
        raise UsageError(f"IMAGE must be an image file. Received: {path}: {error.strerror}.") from error


def check_searchable(file: Searchable, model: Backend) -> None:
    """Raise UsageError unless the features were computed with this model."""
    if file.width != model.feature_dim:
        raise UsageError(
            f"The features must come from the same model. Received: {file.path} with {file.width} features per image, "
            f"{model.facts.path} with {model.feature_dim}. Compute them with `swav-tf features --model "
            f"{model.facts.path}`."
        )
    facts = {"model": model.facts.as_dict(), "view": model.input_view.model_dump()}
    check_same_model(file.facts, facts, str(file.path), model.facts.path)


def similar_images(view: Image, file: Searchable, model: Backend, *, k: int) -> list[dict[str, Any]]:
    """Find the k images nearest to `view`; see `nearest_images`."""
    check_searchable(file, model)
    if not 1 <= k <= len(file):
        raise UsageError(
            f"-k must be from 1 to the number of images in {file.path}, {len(file)}. Received: {k}."
        )
    return nearest_images(file, model.features(view[np.newaxis]), k=k)[0]


def nearest_images(file: Searchable, features: np.ndarray, *, k: int) -> list[list[dict[str, Any]]]:
    """Find the k images of a feature file or index with the highest cosine, for each row of features (n, F).

    Returns:
        `name`, `label`, `class`, `cosine`, `row` and `index` (number in the source) of each, the nearest first.
    """
    found = file.neighbors(features, k=k)
    return [
        [file.entry(row) | {"cosine": cosine, "row": row} for row, cosine in zip(rows, cosines, strict=True)]
        for rows, cosines in zip(found.indices.tolist(), found.cosines.tolist(), strict=True)
    ]


def images_found(
    found: Sequence[dict[str, Any]], file: Searchable, like: Data, data: str | None = None
) -> ImageSet:
    """Open the images that were found in a feature file or index, at `data` if they have moved.

    A folder of images is not listed for an index: the files are opened by their names, if these are printable.
    """
    source = file.facts.get("source") or {}
    # A name that cannot be printed is known by number only.
    escaped = any("\\" in each["name"] for each in found)
    if isinstance(file, FeatureFile) or escaped or source["kind"] not in ("class_folders", "images"):
        return images_of(file, like, data)
    path = data or source["path"]
    settings = like.model_copy(update={"kind": source["kind"], "path": path})
    named = NamedImages(path, {each["index"]: each["name"] for each in found})
    named.decoding = Decoding.of(settings)
    return ImageSet(named, settings)


def images_of(file: Searchable, like: Data, data: str | None = None) -> ImageSet:
    """Open the images of a feature file or index, at `data` if they have moved."""
    source = file.facts.get("source")
    if not source:
        raise UsageError(
            f"{file.path} must specify the source of its images, as files from `swav-tf features` do."
        )
    path = data if data is not None and source["kind"] != "digits" else source["path"]
    like = like.model_copy(update={key: source[key] for key in ("image_key", "label_key") if key in source})
    labels = source.get("labels")  # the list is one of the files, but is not needed
    labels = labels if labels and storage.exists(labels) else None
    images = open_images(path, like=like, kind=source["kind"], split=source["split"], labels=labels)
    total = len(images.source)
    if isinstance(file, FeatureFile):
        pairs = zip(file.index.tolist(), file.names, strict=True)
        same = total == source["images"] and all(
            printable(images.source.image_name(i)) == name for i, name in pairs
        )
    else:
        same = fingerprint(images.source).items() <= source.items()
    if not same:
        raise UsageError(
            f"{path} must contain the {source['images']:,} images of {file.path}, by name. Received: {total:,} images "
            "with other names. Specify their location with --data."
        )
    if source.get("contents_sha256") not in (None, contents_sha256(images.source)):
        log_once(
            logging.WARNING,
            f"Files in {path} have changed in size or modification time since {file.path} was written. If pictures "
            "were replaced, the similar images are those of the old ones: compute the features again with `swav-tf "
            "features --fresh`.",
        )
    return images


def draw_similar(
    view: Image, title: str, found: Sequence[dict[str, Any]], images: ImageSet, model: Backend
) -> PillowImage.Image:
    """Draw the image, and below it its neighbors, the nearest first."""
    cells = [(0, 0, scaled(view, SIDE), (title, ""))]
    for place, near in enumerate(found):
        picture = thumbnail(images.source, near["index"], model.input_view, SIDE)
        below = (f"{near['cosine']:.3f}   {near['class']}", near["name"])
        cells.append((1 + place // COLUMNS, place % COLUMNS, picture, below))
    step = SIDE + 2 * LINE + GAP
    size = (GAP + COLUMNS * (SIDE + GAP), GAP + (cells[-1][0] + 1) * step)
    sheet, font = PillowImage.new("RGB", size, "white"), ImageFont.load_default(12)
    pen = ImageDraw.Draw(sheet)
    for row, column, picture, below in cells:
        left, top = GAP + column * (SIDE + GAP), GAP + row * step
        sheet.paste(picture, (left, top))
        for number, line in enumerate(below):
            pen.text((left, top + SIDE + 2 + number * LINE), shortened(line, font, SIDE), "black", font)
    return sheet
