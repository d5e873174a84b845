"""The images of a feature file that are nearest to one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from evaluate.backends.backend import Backend
from evaluate.cluster_page import BACKGROUND, FAINT, INK, scaled, thumbnail
from evaluate.feature_file import FeatureFile
from evaluate.images import ImageSet, open_images
from evaluate.knn import check_same_model
from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage, decode, evaluation_view
from swav_tf.data.pictures import shortened
from swav_tf.knn import find_neighbours
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import Data

_SIDE, _GAP, _LINE = 144, 16, 17
_COLUMNS = 6


@dataclass(frozen=True)
class Similar:
    """One image near to another.

    Attributes:
        name: its name in the source.
        label: its class, -1 for none.
        class_name: the class's name.
        cosine: of the two images' features.
        index: its number in the source.
    """

    name: str
    label: int
    class_name: str
    cosine: float
    index: int


def query_view(path: Path, runner: Backend) -> Image:
    """An image file as the model sees it, uint8 (crop, crop, 3).

    Raises:
        UsageError: there is no such file.
        DataError: it is no image.
    """
    try:
        return evaluation_view(decode(path.read_bytes()), runner.input_view)
    except UndecodableImage as error:
        raise DataError(f"{path} must be an image: {error}") from error
    except OSError as error:
        raise UsageError(f"IMAGE must be an image file. Received: {path}: {error.strerror}.") from error


def similar_images(view: Image, file: FeatureFile, runner: Backend, *, k: int) -> list[Similar]:
    """The k images of a feature file whose features have the greatest cosine with the image's.

    Args:
        view: from `query_view`.
        file: features of the same model.
        runner: the model.
        k: how many.

    Raises:
        UsageError: the file is of another model, or has fewer than k images.
        DataError: its features are not finite.
    """
    width = file.rows.features.shape[1]
    if width != runner.feature_dim:
        raise UsageError(
            f"The feature file must be of the model. Received: {file.path} with {width} features an image, "
            f"{runner.facts.path} with {runner.feature_dim}."
        )
    ours: dict[str, object] = {"model": runner.facts.as_dict(), "view": runner.input_view.model_dump()}
    check_same_model(file.facts, ours, str(file.path), runner.facts.path)
    if not 1 <= k <= len(file.rows.labels):
        raise UsageError(
            f"-k must be from 1 to the number of images in {file.path}, {len(file.rows.labels)}. Received: {k}."
        )
    feature = runner.run(view[np.newaxis])["features"]
    try:
        found = find_neighbours(file.rows.features, feature, k=k)
    except ValueError as error:
        raise DataError(f"{file.path}: {error}") from error
    return [
        Similar(
            name=file.rows.names[row],
            label=int(file.rows.labels[row]),
            class_name=file.class_name(int(file.rows.labels[row])),
            cosine=float(cosine),
            index=int(file.rows.index[row]),
        )
        for row, cosine in zip(found.indices[0].tolist(), found.cosines[0].tolist(), strict=True)
    ]


def images_of(file: FeatureFile, like: Data, data: str | None = None) -> ImageSet:
    """The images that a feature file was made of.

    Args:
        file: the feature file.
        like: settings that count where the file tells nothing.
        data: where the images are now, if they have moved.

    Raises:
        UsageError: the file does not tell, or these are other images.
        DataError: they are not there.
    """
    source = file.facts.get("source")
    if not source:
        raise UsageError(
            f"{file.path} does not tell where its images are: `swav-tf features` writes files that do."
        )
    moved = data if data is not None and source["kind"] != "digits" else source["path"]
    images = open_images(moved, like=like, kind=source["kind"], split=source["split"])
    if images.facts()["names_sha256"] != source["names_sha256"]:
        raise UsageError(
            f"{moved} must hold the {source['images']:,} images of {file.path}, by name. Received: "
            f"{len(images.source):,} images, of other names. Say where they are with --data."
        )
    return images


def draw_similar(
    view: Image, title: str, found: Sequence[Similar], images: ImageSet, runner: Backend
) -> PillowImage.Image:
    """The image on the left, those near to it beside it, the nearest first."""
    columns = min(_COLUMNS, len(found))
    lines = -(-len(found) // columns)
    step_x, step_y = _SIDE + _GAP, _SIDE + 3 * _LINE
    left, top = _GAP + 2 * _SIDE + 2 * _GAP, 3 * _GAP
    width = left + columns * step_x
    height = max(top + lines * step_y, top + 2 * _SIDE + 2 * _LINE) + _GAP // 2
    picture = PillowImage.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    normal, small = ImageFont.load_default(16), ImageFont.load_default(12)
    pen.text((_GAP, _GAP), "image", INK, normal)
    pen.text((left, _GAP), "nearest images, with the cosine of the features", INK, normal)
    picture.paste(scaled(view, 2 * _SIDE), (_GAP, top))
    pen.text((_GAP, top + 2 * _SIDE + 5), shortened(title, small, 2 * _SIDE), FAINT, small)
    for place, near in enumerate(found):
        x, y = left + place % columns * step_x, top + place // columns * step_y
        picture.paste(thumbnail(images.source, near.index, runner.input_view, _SIDE), (x, y))
        label = f"   {near.class_name}" if near.class_name else ""
        pen.text((x, y + _SIDE + 3), shortened(f"{near.cosine:.3f}{label}", small, _SIDE), INK, small)
        pen.text((x, y + _SIDE + 3 + _LINE), shortened(near.name, small, _SIDE), FAINT, small)
    return picture
