"""Third-party ONNX files of image networks: the facts in the file, and those that the user must give."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.onnx_metadata import (
    KEY,
    OnnxMetadata,
    Precision,
    Preprocessing,
    messages_of,
    read_properties,
)
from swav_tf.data.records import proto_fields, proto_integers, proto_messages
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256
from swav_tf.recipe.data import Data

USUAL: Final = "--view 256,224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
TYPES: Final[dict[str, Any]] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
QUANTIZED: Final = {b"QuantizeLinear", b"QLinearConv", b"ConvInteger", b"MatMulInteger", b"QLinearMatMul"}
TIMED_SIDE: Final = 224  # of the images that time a graph for any size
FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # TensorProto.DataType


@dataclass(frozen=True)
class Contract:
    """How images are prepared for a third-party graph, and which of its outputs are the features.

    Images are made upright, composited, resized to `resize` (short side) and center-cropped as for exported files; see
    docs/export.md. Graphs that take floats get (image / 255 - mean) / std.
    """

    resize: int  # length of the short side after resizing, pixels
    crop: int  # side of the square center crop, pixels
    mean: tuple[float, float, float] | None = None  # of images in [0, 1]; None for graphs that take bytes
    std: tuple[float, float, float] | None = None
    output_name: str | None = None  # of the features; None if the graph has one output

    def __str__(self) -> str:
        """Return it in the words of the command line."""
        words = f"--view {self.resize},{self.crop}"
        if self.mean is not None and self.std is not None:
            words += f" --mean {_words(self.mean)} --std {_words(self.std)}"
        return f"{words} --output-name {shlex.quote(str(self.output_name))}"


@dataclass(frozen=True)
class Graph:
    """How a graph is run."""

    input: str  # its name
    dtype: Any  # NumPy type of the input
    outputs: dict[str, str]  # the graph's names of the backend's outputs
    batch: int | None = None  # the only number of images that it takes; None: any


def is_foreign(path: Path) -> bool:
    """Return whether an ONNX file lacks the metadata of `swav-tf export`."""
    return KEY not in read_properties(path)


def describe(path: Path, session: Any, contract: Contract | None) -> tuple[OnnxMetadata, Graph, str]:
    """Return the facts of a third-party file, how it is run, and its contract in words.

    Without a contract it can be timed only: images are not normalized, and outputs have the graph's names.
    """
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    shapes = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type in TYPES else []
    channels = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == 3]
    if len(channels) != 1:
        raise DataError(
            f"{path} must take one batch of RGB images, float or uint8 (n, 3, height, width) or (n, height, width, 3). "
            f"Received: inputs {shapes}."
        )
    takes_bytes, layout = inputs[0].type == "tensor(uint8)", "NCHW" if channels == [1] else "NHWC"
    sides = [side for side in (shape[2:] if layout == "NCHW" else shape[1:3]) if isinstance(side, int)]
    names = {name: name for name in outputs}
    if contract is None:
        crop = sides[0] if sides else TIMED_SIDE
        contract = Contract(crop, crop)
    else:
        contract = _checked(path, contract, outputs, sides, takes_bytes=takes_bytes)
        names = {"features": str(contract.output_name)}
    preprocessing = Preprocessing(
        resize=contract.resize, crop=contract.crop, mean=contract.mean or (0, 0, 0), std=contract.std or (1, 1, 1),
        layout=layout, inside=takes_bytes,
    )  # fmt: skip
    sha256, precision = _read(path)
    metadata = OnnxMetadata(
        precision=precision, preprocessing=preprocessing, recipe=path.name, step=0, data=Data(kind="class_folders"),
        dataset="unknown", weights_sha256=sha256, versions={},
    )  # fmt: skip
    batch = shape[0] if isinstance(shape[0], int) else None
    return metadata, Graph(inputs[0].name, TYPES[inputs[0].type], names, batch), str(contract)


def _checked(
    path: Path, contract: Contract, outputs: Sequence[str], sides: Sequence[int], *, takes_bytes: bool
) -> Contract:
    """Return the contract with the name of the output; UsageError if it does not fit the graph."""
    name = contract.output_name
    if name is None and len(outputs) == 1:
        name = outputs[0]
    if name not in outputs:
        raise UsageError(
            f"--output-name must name the output of {path} that has the features. "
            f"Received: {name or 'no name'}; it has {', '.join(outputs)}."
        )
    if set(sides) - {contract.crop}:
        raise UsageError(
            f"--view RESIZE,CROP must have the side of the images that {path} takes as CROP, "
            f"{' x '.join(map(str, sides))}. Received: {contract.crop}."
        )
    given = [each is not None for each in (contract.mean, contract.std)]
    if any(given) if takes_bytes else not all(given):
        what = "takes bytes, and normalizes them itself: omit" if takes_bytes else "takes floats and needs"
        raise UsageError(f"{path} {what} --mean and --std. The usual ones are {USUAL}.")
    return Contract(contract.resize, contract.crop, contract.mean, contract.std, name)


def weight_files(path: Path) -> list[Path]:
    """Return a file and those of its external weights."""
    return [path, *(path.parent / name for name in sorted(_content(path)[2]))]


def _read(path: Path) -> tuple[str, Precision]:
    """Return a SHA-256 of a file with its external weights, and the precision of the weights."""
    operators, elements, _ = _content(path)
    hashes = [file_sha256(file) for file in weight_files(path)]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    if operators & QUANTIZED:
        return sha256, "int8"
    half = elements.get(FLOAT16, 0) + elements.get(BFLOAT16, 0) > elements.get(FLOAT, 0)
    return sha256, "fp16" if half else "fp32"


def _content(path: Path) -> tuple[set[bytes], dict[int, int], set[str]]:
    """Return the operators of a file that runs, its constants by data type, and the names of its external weights.

    The numbers are those of the fields in onnx.proto: the package onnx is not needed to run a file.
    """
    operators, elements, external = set[bytes](), dict[int, int](), set[str]()
    for graph in messages_of(path, 7):
        operators |= {bytes(name) for node in proto_messages(graph, 1) for name in proto_messages(node, 4)}
        for tensor in proto_messages(graph, 5):
            sides = [side for value in proto_fields(tensor, 1) for side in proto_integers(value)]
            [kind] = [kind for kind in proto_fields(tensor, 2) if isinstance(kind, int)]
            elements[kind] = elements.get(kind, 0) + math.prod(sides)
            for entry in proto_messages(tensor, 13):
                [key], [value] = proto_messages(entry, 1), proto_messages(entry, 2)
                if bytes(key) == b"location":
                    external.add(bytes(value).decode())
    return operators, elements, external


def _words(numbers: Sequence[float]) -> str:
    """Return the numbers exactly: part of the features' facts, and of the command that continues them."""
    return ",".join(repr(float(number)).removesuffix(".0") for number in numbers)
