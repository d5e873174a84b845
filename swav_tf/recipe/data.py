"""The section `data` of all recipes: where the images come from, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from swav_tf.plumbing.log import log
from swav_tf.recipe.section import Color, Probability, Remark, Section


class EvaluationView(Section):
    """The view of an image that a frozen backbone gets: resized, then center-cropped."""

    resize: int = Field(256, ge=8, description="length of the short side after resizing, pixels")
    crop: int = Field(224, ge=8, description="side of the square center crop, pixels")


Kind = Literal["auto", "class_folders", "images", "list", "tar", "parquet", "tfrecord", "tfds", "digits"]
# Kinds whose files may be of splits of one data set.
SPLIT_KINDS: frozenset[str] = frozenset({"tar", "parquet", "tfds", "digits"})


class Data(Section):
    """Where the images come from."""

    kind: Kind = Field(
        "auto",
        description="auto: detected from the content of <path>; class_folders: <path>/<class>/*.JPEG; images: any "
        "images below <path>; list: a CSV, TSV, JSON or text file of paths and labels; tar: archives of a folder, or "
        "webdataset shards; parquet: Parquet files as Hugging Face writes them; tfrecord: shards below <path>; tfds: a "
        "TensorFlow Datasets name as <path>; digits: bundled",
    )
    path: str | None = Field(None, description="folder, file, pattern or TFDS name; not needed for digits")
    labels: str | None = Field(None, description="list file with the names and labels of the images")
    split: str = Field(
        "train", description="split of a tfds or digits source, or of a folder of Parquet or tar files"
    )
    validation_path: str | None = Field(None, description="labeled images for the k-NN during training")
    validation_split: str | None = Field(
        None, description="split with labeled images for the k-NN during training"
    )
    image_key: str = Field(
        "image/encoded",
        description="TFRecord feature or Parquet column with the encoded image, or a list's column of paths; in "
        "lists and Parquet the default matches the usual names",
    )
    label_key: str = Field(
        "image/class/label",
        description="likewise for the label: an integer feature in TFRecord, a column in lists and Parquet, a JSON "
        "field in tar",
    )
    max_bad_share: Probability = Field(
        0.01,
        description="largest share of unreadable images (0 to 1); the run stops above it; counted per worker",
    )
    background: Color = Field((255, 255, 255), description="RGB (0 to 255) under transparent parts of images")
    max_pixels: int = Field(
        2**28,
        ge=1,
        description="images with more pixels are treated as damaged. JPEGs above 89 million are decoded smaller",
    )
    threads: int = Field(0, ge=0, description="threads that decode and crop, per worker; 0: one per core")
    processes: int = Field(0, ge=0, description="processes that crop instead of threads, per worker; 0: none")
    prefetch_batches: int = Field(4, ge=1, description="batches prepared ahead of the device, per worker")
    evaluation: EvaluationView = Field(EvaluationView(), description="the view for k-NN and features")

    @model_validator(mode="before")
    @classmethod
    def _drop_service(cls, values: Any) -> Any:
        """Load runs of earlier versions, which had a setting `service`; it never changed the crops."""
        if isinstance(values, dict) and values.pop("service", None) is not None:
            log.warning(
                "data.service was removed; crops are made on this machine. Set data.processes to its number of cores."
            )
        return values

    def impossible(self) -> Iterator[Remark]:
        """Yield a view that does not fit, and a path that is not read."""
        view = self.evaluation
        if view.crop > view.resize:
            yield Remark(
                "data.evaluation.crop",
                f"a center crop of {view.crop} pixels does not fit a short side of {view.resize}",
                f"Set it to {view.resize} or less, or data.evaluation.resize to more",
            )
        if self.kind == "digits" and self.path is not None:
            yield Remark(
                "data.path",
                f"the digits are bundled and have no path; got {self.path!r}",
                "For your own images set data.kind to auto, or tfds",
            )

    @property
    def unlabeled(self) -> bool:
        """Whether the images certainly have no labels."""
        return self.kind == "images" and self.labels is None
