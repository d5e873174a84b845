"""The images that DATA names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from swav_tf.data.sources import ImageSource, contents_sha256, fingerprint, open_source, recognize
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.pretraining import Data

KINDS: tuple[str, ...] = get_args(Data.model_fields["kind"].annotation)


@dataclass(frozen=True)
class ImageSet:
    """Images and the settings that they were opened with."""

    source: ImageSource
    settings: Data

    def facts(self) -> dict[str, Any]:
        """Return what identifies these images: place, number, names, and sizes and times of their files."""
        return {**self.list_facts(), "contents_sha256": contents_sha256(self.source)}

    def list_facts(self) -> dict[str, Any]:
        """Return what identifies their list: place, number and names. No file is looked at."""
        return {
            "kind": self.settings.kind,
            "path": self.settings.path,
            "split": self.settings.split if self.settings.kind in ("digits", "tfds") else None,
            **fingerprint(self.source),
        }


def open_images(
    data: str | None, *, like: Data, kind: str | None = None, split: str | None = None
) -> ImageSet:
    """Open the images that DATA names: a folder, a pattern of shards, a TFDS name, or `digits`.

    `like` has the defaults, also for DATA; usually it is the settings of the model's training images.

    Raises:
        UsageError: the arguments contradict each other.
        DataError: the images are missing or of another kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind must be one of {', '.join(KINDS)}. Received: {kind}.")
    if data == "digits" and kind is None:
        kind = "digits"
    if kind is None and data is not None and like.kind == "digits":
        raise UsageError(
            f"--kind must be given to read {data}, since the model was trained on the bundled digits: "
            "--kind class_folders (labelled), images (unlabelled), tfrecord or tfds."
        )
    if kind is None and data is not None and like.kind == "class_folders":
        found = recognize(data)
        kind = "images" if found.kind == "images" else like.kind
        if kind != like.kind:  # reading it as class folders would leave out images
            log.info(f"{data} is read as {kind}: {found.why}.")
    kind = kind or like.kind
    if data is None and kind != "digits" and (like.path is None or kind != like.kind):
        raise UsageError(f"DATA must name the images. Received: no DATA, kind {kind}.")
    path = None if kind == "digits" else (data or like.path)
    if split is not None and kind not in ("digits", "tfds"):
        raise UsageError(f"--split applies to digits and TFDS data sets. Received: {split}, kind {kind}.")
    changes = {"kind": kind, "path": path, "split": split or (like.split if kind == like.kind else "train")}
    settings = like.model_copy(update=changes)
    return ImageSet(open_source(settings), settings)
