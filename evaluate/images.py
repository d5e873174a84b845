"""The images that a command is about, decoded in parallel to the view that the model wants."""

from __future__ import annotations

import csv
import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.decode import UndecodableImage, evaluation_view
from swav_tf.data.sources import ImageSource, open_source, read_image
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.pretraining import Data, EvaluationView

KINDS: tuple[str, ...] = get_args(Data.model_fields["kind"].annotation)


@dataclass(frozen=True)
class ImageSet:
    """Images and the settings that they were opened with.

    Attributes:
        source: the images.
        settings: kind, path, split and so on.
    """

    source: ImageSource
    settings: Data

    def facts(self) -> dict[str, Any]:
        """What tells these images from others: where they are, how many, the SHA-256 of their names.

        `names_sha256` is over printable names, one a line. A run's `fingerprint` (swav_tf.data.sources)
        has a field of that name over their bytes on disk: the two do not compare.
        """
        names = hashlib.sha256()
        for index in range(len(self.source)):
            names.update(printable(self.source.image_name(index)).encode() + b"\n")
        return {
            "kind": self.settings.kind,
            "path": self.settings.path,
            "split": self.settings.split if self.settings.kind in ("digits", "tfds") else None,
            "images": len(self.source),
            "names_sha256": names.hexdigest(),
        }


@dataclass(frozen=True)
class ViewedImage:
    """One image as the model sees it, or why it cannot be read.

    Attributes:
        index: its number in the source.
        name: its name there, printable.
        label: its class, -1 for none.
        view: uint8 (crop, crop, 3); None if it cannot be read.
        reason: why, if it cannot.
    """

    index: int
    name: str
    label: int
    view: Image | None
    reason: str | None


def open_images(
    data: str | None, *, like: Data, kind: str | None = None, split: str | None = None
) -> ImageSet:
    """The images that DATA names, read as those were that the model was trained on.

    Args:
        data: a folder, a pattern of shards, a TFDS name, or `digits`; None for `like`'s own images.
        like: settings that count where nothing else is said: those of the model's training images.
        kind: one of KINDS, instead of `like`'s.
        split: of digits or a TFDS data set, instead of `like`'s.

    Raises:
        UsageError: what is asked for does not fit together.
        DataError: the images are missing or of another kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind must be one of {', '.join(KINDS)}. Received: {kind}.")
    if data == "digits" and kind is None:
        kind = "digits"
    if kind is None and data is not None and like.kind == "digits":
        raise UsageError(
            f"The model was trained on the bundled digits, so that it is open how {data} is to be read. "
            "Say it: --kind class_folders (labelled), --kind images (unlabelled), tfrecord or tfds."
        )
    kind = kind or like.kind
    if data is None and kind != "digits" and (like.path is None or kind != like.kind):
        raise UsageError(f"DATA must say where the images are. Received: no DATA, kind {kind}.")
    path = None if kind == "digits" else (data or like.path)
    if split is not None and kind not in ("digits", "tfds"):
        raise UsageError(f"--split belongs to digits and TFDS data sets. Received: {split}, kind {kind}.")
    changes = {"kind": kind, "path": path, "split": split or (like.split if kind == like.kind else "train")}
    settings = like.model_copy(update=changes)
    return ImageSet(open_source(settings), settings)


def view_images(
    source: ImageSource, indices: Sequence[int], view: EvaluationView, *, threads: int = 0, ahead: int = 256
) -> Generator[ViewedImage, None, None]:
    """The evaluation views of images, in the order asked for, decoded by `threads` at once.

    Args:
        source: the images.
        indices: their numbers.
        view: how they are shown.
        threads: 0 for one a core.
        ahead: images that are decoded before they are asked for: what memory holds.
    """

    def read(index: int) -> ViewedImage:
        name = printable(source.image_name(index))
        try:
            shown = evaluation_view(read_image(source, index), view)
            return ViewedImage(index, name, source.label(index), shown, None)
        except (UndecodableImage, OSError) as error:
            return ViewedImage(index, name, -1, None, printable(str(error)))

    with ThreadPoolExecutor(threads or available_cores(), thread_name_prefix="decode") as pool:
        waiting: deque[Future[ViewedImage]] = deque()
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # who asked may have stopped listening
            for future in waiting:
                future.cancel()


class UnreadableImages:
    """The images that could not be read; too many of them are an error.

    Args:
        images: how many there are in all.
        max_share: share of them (0 to 1) that may be unreadable; at least one may, unless it is 0.
        path: the CSV file to list them in.
    """

    def __init__(self, images: int, max_share: float, path: Path) -> None:
        self.images, self.max_share, self.path = images, max_share, path
        self.reasons: dict[str, str] = {}
        self.allowed = max(1, int(max_share * images)) if max_share > 0 else 0

    def add(self, image: ViewedImage) -> None:
        """Counts an image that could not be read.

        Raises:
            DataError: that makes too many.
        """
        self.reasons[image.name] = image.reason or ""
        if len(self.reasons) > self.allowed:
            raise DataError(
                f"At most a share of {self.max_share:g} of the images may be unreadable, {self.allowed} of "
                f"{self.images}. Received: {len(self.reasons)}, listed in {self.path}; the last is "
                f"{image.name}: {image.reason}. Mend or remove them, or give a larger --max-bad-share."
            )

    def write_list(self) -> None:
        """Writes name and reason of each; no file if there are none."""
        if not self.reasons:
            self.path.unlink(missing_ok=True)
            return
        with atomic_write(self.path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("name", "reason"), *self.reasons.items()])

    def read_list(self) -> dict[str, str]:
        """Name and reason of those that an earlier run listed."""
        if not self.path.exists():
            return {}
        with self.path.open(encoding="utf-8", newline="") as file:
            return {line["name"]: line["reason"] for line in csv.DictReader(file)}


def batches(
    images: Iterable[ViewedImage], size: int, unreadable: UnreadableImages
) -> Iterator[list[ViewedImage]]:
    """Readable images in batches of `size`, the last of what remains; the others are counted.

    Raises:
        DataError: too many are unreadable.
    """
    batch: list[ViewedImage] = []
    for image in images:
        if image.view is None:
            unreadable.add(image)
            continue
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def stack_views(batch: Sequence[ViewedImage]) -> np.ndarray:
    """The views of a batch, uint8 (n, crop, crop, 3)."""
    return np.stack([image.view for image in batch if image.view is not None])
