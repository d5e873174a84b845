"""Prove in which precision an engine convolves, by its own list of layers.

A builder may leave a layer in another precision than requested, and a tool may set a flag without effect:
the name of an engine proves nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evaluate.backends.engine_file import Proof, ProofSource
from evaluate.backends.onnx_metadata import Precision
from export.staging import ExportError

TYPES: Final[Mapping[Precision, str]] = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
# Kinds of layers that can contain a convolution: TensorRT's own kernels (CaskConvolution), its compiler's
# (correlation; gemm for a 1x1), and those fused with others (fusion). Copies and generated pointwise
# kernels also name the convolution that they prepare data for.
CONVOLVES: Final = re.compile("conv|correlation|gemm|fusion", re.IGNORECASE)
# How lists of layers write a type: `Half`, or words such as "Channel major FP16 format".
WRITTEN: Final = {"Float": "float|fp32", "Half": "half|fp16", "Int8": "int8"}
LISTED: Final = 5  # wrong convolutions in a message


@dataclass(frozen=True)
class Layer:
    """One layer of an engine."""

    kind: str  # of its kernel
    nodes: frozenset[str]  # of the ONNX graph that it computes
    reads: str  # data type of its first input, or "" without one
    weights: str  # data type of its largest constant, or "" without one


def from_inspector(text: str) -> list[Layer]:
    """Read the layers in the engine inspector's JSON."""
    layers = json.loads(text)["Layers"]
    if any(isinstance(layer, str) for layer in layers):  # names only
        raise ExportError(
            "The engine must be built with detailed profiling verbosity to prove its precision. Received: one with "
            "the names of its layers only. Build it with `swav-tf export`."
        )
    return [_from_json(layer) for layer in layers]


def from_listing(text: str) -> list[Layer]:
    """Read the layers in the list that a builder logs at its end, for machines that cannot load the engine."""
    return [
        Layer(
            kind=_between(line, "LayerType: ", ","),
            nodes=_nodes(line.partition("Metadata: ")[2]),
            reads=_type(next(iter(_tensors(line, "Inputs")), "")),
            weights=_type(max(_tensors(line, "Constants"), key=_size, default="")),
        )
        for line in map(str.strip, text.splitlines())
        if line.startswith("Name: ") and ", LayerType: " in line
    ]


def prove(
    layers: Iterable[Layer], convolutions: Mapping[str, Precision], *, source: ProofSource, builder: str
) -> Proof:
    """Compare every convolution of the ONNX graph (its precision by name) with the layers that compute it."""
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        if CONVOLVES.search(layer.kind):
            for node in layer.nodes:
                by_node.setdefault(node, []).append(layer)
    wrong, counts = [], Counter[str]()
    for node, precision in convolutions.items():
        types = {kind for layer in by_node.get(node, []) for kind in (layer.reads, layer.weights)}
        types.discard("")  # weights may be an input: then there is no constant
        if types != {TYPES[precision]}:
            found = " and ".join(sorted(types)) or "not listed"
            wrong.append(f"{node} is {found}, not {TYPES[precision]}")
        counts[TYPES[precision]] += 1
    if wrong or not counts:
        more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise ExportError(
            f"Every convolution of the engine must have the precision of the graph. {builder} built {len(wrong)} of "
            f"{len(convolutions)} otherwise: {'; '.join(wrong[:LISTED])}{more}. The engine was not written."
        )
    return Proof(source=source, convolutions=dict(counts))


def _from_json(layer: Mapping[str, Any]) -> Layer:
    inputs: Sequence[Mapping[str, Any]] = layer.get("Inputs", [])
    constants: Sequence[Mapping[str, Any]] = layer.get("Constants", [])
    weights = layer.get("Weights", {}).get("Type", "")
    if constants and not weights:
        weights = _written(max(constants, key=lambda constant: math.prod(constant.get("Dimensions", []))))
    return Layer(
        kind=layer.get("LayerType", ""),
        nodes=_nodes(layer.get("Metadata", "")),
        reads=_type(_written(inputs[0])) if inputs else "",
        weights=_type(weights),
    )


def _written(tensor: Mapping[str, Any]) -> str:
    """Return a tensor's type in words: a key of its own since TensorRT 10.13, part of the format before."""
    return str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _type(words: str) -> str:
    """Return `Float`, `Half`, `Int8`, or the words if they are another type."""
    if "Datatype: " in words:
        words = _between(words, "Datatype: ", ",")
    return next(
        (name for name, pattern in WRITTEN.items() if re.search(rf"\b({pattern})\b", words, re.IGNORECASE)),
        words,
    )


def _nodes(metadata: str) -> frozenset[str]:
    return frozenset(re.findall(r"\[ONNX Layer: (.*?)\](?=[^\w/]|\[|$)", metadata))


def _tensors(line: str, group: str) -> list[str]:
    """Return the tensors of a group, each as the text between its braces."""
    inside = _between(line, f"{group}: [", "], Constants:" if group == "Inputs" else "], Outputs:")
    return re.findall(r"\{ (.*?) \}", f"{inside} ")


def _size(tensor: str) -> int:
    return math.prod(abs(int(side)) for side in _between(tensor, "Dimensions: [", "]").split(",") if side)


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]
