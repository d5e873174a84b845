"""The images that DATA names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from PIL import Image as PillowImage

from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.image_source import ImageSource
from swav_tf.data.pictures import scaled
from swav_tf.data.recognition import is_bundled
from swav_tf.data.sources import contents_sha256, fingerprint, open_source, read_image, recognized
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import printable
from swav_tf.recipe.data import SPLIT_KINDS, Data, EvaluationView

SIDE: Final = 96  # of a thumbnail, pixels
KINDS: tuple[str, ...] = get_args(Data.model_fields["kind"].annotation)


@dataclass(frozen=True)
class ImageSet:
    """Images and the settings that they were opened with."""

    source: ImageSource
    settings: Data

    def facts(self) -> dict[str, Any]:
        """Return facts that identify these images: place, number, names, and sizes and times of their files."""
        return {**self.list_facts(), "contents_sha256": contents_sha256(self.source)}

    def list_facts(self) -> dict[str, Any]:
        """Return facts that identify their list: place, number and names. No file is opened."""
        return {
            "kind": self.settings.kind,
            "path": self.settings.path,
            "split": self.settings.split if self.settings.kind in SPLIT_KINDS else None,
            **self.settings.model_dump(include={"labels", "image_key", "label_key"}, exclude_defaults=True),
            **fingerprint(self.source),
        }


def open_images(
    data: str | None,
    *,
    like: Data,
    kind: str | None = None,
    split: str | None = None,
    labels: str | None = None,
) -> ImageSet:
    """Open the images that DATA names: a folder, a file, a pattern, a TFDS name, or `digits`.

    `like` has the defaults, also for DATA; usually it is the settings of the model's training images. `labels` names a
    list with the labels of images that have none.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind must be one of {', '.join(KINDS)}. Received: {kind}.")
    if kind is None:
        follows = data is not None and (like.kind != "tfds" or Path(data).exists())
        kind = "digits" if is_bundled(data) else "auto" if follows else like.kind
    if data is None and kind != "digits" and (like.path is None or kind != like.kind):
        raise UsageError(
            f"DATA is required: the model's recipe names no images of kind {kind}. Pass a folder, file or glob pattern."
        )
    own = {"kind": kind, "path": None if kind == "digits" else (data or like.path)}
    if data is not None or labels is not None:
        own["labels"] = labels  # the model's list is for its own images
    kind = recognized(like.model_copy(update=own)).kind
    if split is not None and kind not in SPLIT_KINDS:
        raise UsageError(
            f"--split applies to digits, TFDS data sets, Parquet and tar. Received: {split}, kind {kind}."
        )
    split = split or (like.split if kind == like.kind else "train")
    settings = like.model_copy(update=own | {"kind": kind, "split": split})
    return ImageSet(open_source(settings), settings)


def thumbnail(source: ImageSource, index: int, view: EvaluationView, side: int) -> PillowImage.Image:
    """Return the evaluation view of an image as a square of `side` pixels, gray and with a warning if unreadable."""
    try:
        return scaled(evaluation_view(read_image(source, index), view), side)
    except (UndecodableImage, OSError) as error:
        log.warning(f"{printable(source.image_name(index))} cannot be read and is shown in gray: {error}")
        return PillowImage.new("RGB", (side, side), "gray")


def picture_card(
    lines: list[str],
    entries: Sequence[dict[str, Any]],
    captions: Sequence[str],
    images: ImageSet,
    view: EvaluationView,
) -> dict[str, Any]:
    """Return text and captioned pictures for a page; entries have `index`, `name` and `class` of the images."""
    titles = [f"{each['name']}{f', class {known}' if (known := each['class']) else ''}" for each in entries]
    pictures = [thumbnail(images.source, each["index"], view, SIDE) for each in entries]
    return {"lines": lines, "share": None, "pictures": list(zip(pictures, captions, titles, strict=True))}
