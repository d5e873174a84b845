"""The `metadata_props` of an exported ONNX file."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final, Literal

import numpy as np
from pydantic import ValidationError

from evaluate.backends.backend import ModelIdentity
from swav_tf.data.records import proto_messages
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data, EvaluationView
from swav_tf.recipe.section import Section

KEY: Final = "swav_tf"
FORMAT: Final = 1

Precision = Literal["fp32", "fp16", "int8"]
Input = Literal["uint8", "float32"]


class Preprocessing(Section):
    """The steps from an image to the graph's input. The names are a file format."""

    resize: int  # length of the short side after resizing, pixels
    crop: int  # side of the square center crop, pixels
    interpolation: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    colour: Literal["RGB"] = "RGB"
    orientation: Literal["upright by EXIF"] = "upright by EXIF"
    background: tuple[int, int, int] = (255, 255, 255)  # RGB; transparent parts are composited over it
    depth: Literal["8 bits; 16 bits are divided by 257"] = "8 bits; 16 bits are divided by 257"
    mean: tuple[float, float, float]  # of the three channels of images in [0, 1]
    std: tuple[float, float, float]
    layout: Literal["NHWC", "NCHW"]  # of the graph's input, after the batch
    inside: bool  # whether the graph itself scales to [0, 1] and normalizes, so that it takes bytes

    @property
    def view(self) -> EvaluationView:
        """Resizing and cropping as the recipe names them."""
        return EvaluationView(resize=self.resize, crop=self.crop)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the graph's input for a batch of this size."""
        sides = (self.crop, self.crop)
        return (batch, *sides, 3) if self.layout == "NHWC" else (batch, 3, *sides)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Return images (n, crop, crop, 3) as the graph takes them: bytes or normalized float32, in its layout."""
        if not self.inside:
            scaled = images.astype(np.float32) / np.float32(255)
            images = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return images if self.layout == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


class WeightsFile(Section):
    """The second file of a graph that is too large for one: its name in the same folder, and its checksum."""

    name: str
    sha256: str


class OnnxMetadata(Section):
    """The facts of one file. The names are a file format."""

    format: Literal[1] = FORMAT
    precision: Precision  # of the backbone's arithmetic
    preprocessing: Preprocessing
    recipe: str
    step: int  # optimizer steps that the model was trained for
    epoch: str = ""  # of a classifier, in words: `best epoch (21)`
    data: Data  # how its training images are read, without their paths (see `public_data`)
    dataset: str  # name of the training images for people
    weights_sha256: str  # of the checkpoint's weights
    versions: dict[str, str]  # of the tools that made the file
    quantisation: dict[str, Any] | None = None  # int8 only: calibration images, method, layers left in float
    class_names: tuple[str, ...] = ()  # of the output `logits`, in its order; empty without it
    weights_file: WeightsFile | None = None  # of graphs beyond 2 GiB only

    def as_properties(self) -> dict[str, str]:
        """Return the properties of the ONNX file: all facts as JSON under one key, the best known ones also alone."""
        return {
            KEY: self.model_dump_json(),
            "preprocessing": self.preprocessing.model_dump_json(),
            "precision": self.precision,
            "recipe": self.recipe,
            "step": str(self.step),
            "weights_sha256": self.weights_sha256,
        }

    def identity(self, path: Path, runner: str, file_sha256: str) -> ModelIdentity:
        """Return the identity of the file at `path` as run by `runner`."""
        return ModelIdentity(
            path=str(path),
            runner=f"{runner} {self.precision}",
            weights_sha256=self.weights_sha256,
            step=self.step,
            recipe=self.recipe,
            file_sha256=file_sha256,
        )


def public_data(data: Data) -> Data:
    """Return the settings without paths of the training machine. A TFDS name stays."""
    if data.kind in ("digits", "tfds"):
        return data
    return data.model_copy(update={"path": None, "validation_path": None, "labels": None})


def dataset_name(data: Data) -> str:
    """Return a name for the images: TFDS's, or the last folder's."""
    if data.kind == "digits" or data.path is None:
        return data.kind
    return data.path if data.kind == "tfds" else PurePath(data.path).name


def messages_of(path: Path, number: int) -> list[memoryview]:
    """Return the values of one field of a file's ModelProto; running a file does not take the package onnx."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return list(proto_messages(memoryview(content), number))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is not a readable ONNX file: {error}.") from error


def read_properties(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of any ONNX file."""
    found = {}
    try:
        for entry in messages_of(path, 14):
            key, value = (b"".join(proto_messages(entry, number)).decode() for number in (1, 2))
            found[key] = value
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is not a readable ONNX file: {error}.") from error
    return found


def read_metadata(properties: Mapping[str, str], path: str) -> OnnxMetadata:
    """Read the facts from a file's `metadata_props`; DataError if they are missing, damaged or of another version."""
    if KEY not in properties:
        raise DataError(
            f"An ONNX file must be from `swav-tf export`, whose metadata specify the preprocessing. Received: {path}, "
            f"without the metadata `{KEY}`. `features`, `similar` and `verify --against` take third-party files with "
            "the options --view, --mean and --std; `benchmark` needs none."
        )
    try:
        return OnnxMetadata.model_validate_json(properties[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} must have metadata of format {FORMAT}. Received: {error.error_count()} invalid values, the "
            f"first: {first['loc']}: {first['msg']}. Export again."
        ) from error
