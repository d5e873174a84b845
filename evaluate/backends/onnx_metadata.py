"""What an exported ONNX file tells about itself, in its `metadata_props`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final, Literal

from pydantic import ValidationError

from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Data, EvaluationView, Section

KEY: Final = "swav_tf"
FORMAT: Final = 1

Precision = Literal["fp32", "fp16", "int8"]
Input = Literal["uint8", "float32"]


class Preprocessing(Section):
    """From an image to the graph's input.

    Attributes:
        resize: length of the short side after resizing, pixels.
        crop: side of the square centre crop, pixels.
        interpolation: how it is resized.
        colour: order of the channels.
        mean: of the three channels of images in [0, 1].
        std: likewise.
        layout: of the graph's input, after the batch.
        inside: whether the graph scales to [0, 1] and normalises, so that it is given bytes.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    colour: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: Literal["NHWC", "NCHW"]
    inside: bool

    @property
    def view(self) -> EvaluationView:
        """Resizing and cropping, as the training side has them."""
        return EvaluationView(resize=self.resize, crop=self.crop)


class WeightsFile(Section):
    """The second file of a graph that is too large for one.

    Attributes:
        name: of the file, in the same folder.
        sha256: of its bytes.
    """

    name: str
    sha256: str


class OnnxMetadata(Section):
    """The facts of one file.

    Attributes:
        format: of these facts.
        precision: of the backbone's arithmetic.
        preprocessing: from an image to the input.
        recipe: name of the recipe that it was trained by.
        step: optimiser steps that it was trained for.
        data: how the images that it was trained on are read; where they lie stays at home (see `public_data`).
        dataset: their name, for people.
        weights_sha256: of the checkpoint's weights.
        versions: of the tools that made the file.
        quantisation: int8 only: calibration images, method, what stayed in float.
        class_names: of the output `logits`, in its order; empty without it.
        weights_file: of graphs beyond 2 GiB only.
    """

    format: Literal[1] = FORMAT
    precision: Precision
    preprocessing: Preprocessing
    recipe: str
    step: int
    data: Data
    dataset: str
    weights_sha256: str
    versions: dict[str, str]
    quantisation: dict[str, Any] | None = None
    class_names: tuple[str, ...] = ()
    weights_file: WeightsFile | None = None

    def as_properties(self) -> dict[str, str]:
        """As ONNX keeps it: all of it as JSON under one key, and what people look for under keys of its own."""
        return {
            KEY: self.model_dump_json(),
            "preprocessing": self.preprocessing.model_dump_json(),
            "precision": self.precision,
            "recipe": self.recipe,
            "step": str(self.step),
            "weights_sha256": self.weights_sha256,
        }


def public_data(data: Data) -> Data:
    """The settings without the paths of the machine that trained: a file goes to others. A TFDS name stays."""
    if data.kind in ("digits", "tfds"):
        return data
    return data.model_copy(update={"path": None, "validation_path": None})


def dataset_name(data: Data) -> str:
    """What to call the images: TFDS's name, or the last folder's."""
    if data.kind == "digits" or data.path is None:
        return data.kind
    return data.path if data.kind == "tfds" else PurePath(data.path).name


def read_metadata(properties: Mapping[str, str], path: str) -> OnnxMetadata:
    """The facts in a file's `metadata_props`.

    Args:
        properties: the strings by key.
        path: of the file, for messages.

    Raises:
        DataError: they are missing, damaged or of another version.
    """
    if KEY not in properties:
        raise DataError(
            f"An ONNX file must be one by `swav-tf export`, which tells how its images are prepared. "
            f"Received: {path}, without the metadata `{KEY}`."
        )
    try:
        return OnnxMetadata.model_validate_json(properties[KEY])
    except ValidationError as error:
        raise DataError(
            f"{path} must have metadata of format {FORMAT}. Received: {error.error_count()} values that do not "
            f"fit, the first: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}. Export it anew."
        ) from error
