"""Damaged ONNX files, and whole ones that compute something else: told by `verify`, never run to a wrong result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.runners.onnx_runner import OnnxRunner
from export.parity import GATES
from export.reference import REFERENCE, read_reference
from export.verify import verify
from faults.commands import Commands
from faults.isolated import isolated
from faults.jobs import make
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.errors import SwavError

NAME = "model-fp32.onnx"


def run(plan: Plan) -> Iterator[Trial]:
    """Damage to bytes and changes to the graph, in turn."""
    made = make(Commands(plan.folder), plan.folder / "made")
    exported = made.exported
    whole = (exported / NAME).read_bytes()
    reference = read_reference(exported / REFERENCE)

    def damaged(number: int) -> tuple[str, bytes]:
        draw = plan.draw(number)
        if number % 2 == 0:
            data, how = mutated(whole, draw)
            return f"bytes: {how}", data
        return changed_graph(whole, draw)

    def outcome(number: int) -> tuple[str, str, str]:
        how, data = damaged(number)
        folder = plan.folder / f"onnx-{number}"
        folder.mkdir()
        try:
            for path in exported.iterdir():
                if path.name != NAME:
                    shutil.copy(path, folder / path.name)
            (folder / NAME).write_bytes(data)
            return (*_told(folder / NAME, exported / NAME, reference), how)
        finally:
            shutil.rmtree(folder)

    for answer in isolated(outcome, list(plan.numbers)):
        told, wrong, how = answer.value or ("", "", "")
        wrong = answer.broken or wrong
        finding = f"{how or damaged(answer.argument)[0]}: {shortened(wrong)}" if wrong else ""
        what = "ONNX file, changed graph" if answer.argument % 2 else "ONNX file, damaged bytes"
        yield Trial(answer.argument, what, told or "broken", finding=finding)


def _told(path: Path, whole: Path, reference: Any) -> tuple[str, str]:
    """What `verify` says of a file, and what is wrong with that."""
    try:
        [(_, parity)] = verify([path], threads=1).values()
    except SwavError:
        return "refused in words", ""
    if not parity.passed:
        return "verify fails", "" if parity.failures and all(
            parity.failures
        ) else "verify fails without a reason"
    right, got = OnnxRunner(whole, threads=1), OnnxRunner(path, threads=1)
    # Other images than those of the reference: right there and wrong elsewhere would be no proof.
    images = np.random.default_rng(1).integers(
        0, 256, (8, right.view.crop, right.view.crop, 3), dtype=np.uint8
    )
    one, other = right.run(images)["features"], got.run(images)["features"]
    apart = float(np.linalg.norm(one - other) / np.linalg.norm(one))
    gate = GATES[right.metadata.precision].relative_error
    # The gate is for the reference's images; near it, others may lie a little beyond.
    if gate is not None and not apart <= 10 * gate:
        return "", f"verify passes, and features differ by {apart:.3g}"
    if right.metadata != got.metadata:
        return (
            "",
            f"verify passes, and the file tells other facts: {_difference(right.metadata, got.metadata)}",
        )
    return "passes, computes the same", ""


def _difference(one: Any, other: Any) -> str:
    a, b = one.model_dump(), other.model_dump()
    return "; ".join(f"{key}: {a[key]!r} and {b[key]!r}" for key in a if a[key] != b[key])[:300]


def changed_graph(whole: bytes, draw: np.random.Generator) -> tuple[str, bytes]:
    """A file that can be parsed, with something else in it, and what was done."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(whole)
    graph = model.graph
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    way = (
        "weights noise", "one weight", "a weight NaN", "weights of zeros", "attribute", "operator", "node lost",
        "nodes swapped", "output renamed", "input shape", "opset", "metadata", "shape of a weight", "external data",
        "weights swapped", "edge lost",
    )[int(draw.integers(16))]  # fmt: skip
    tensor = floats[int(draw.integers(len(floats)))]
    node = graph.node[int(draw.integers(len(graph.node)))]
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    if way == "weights noise":
        values = values + draw.normal(0, 0.05 * (np.abs(values).mean() + 1e-3), values.shape).astype(
            values.dtype
        )
    elif way == "one weight":
        flat[int(draw.integers(flat.size))] *= np.float32(-3)
    elif way == "a weight NaN":
        flat[int(draw.integers(flat.size))] = np.nan
    elif way == "weights of zeros":
        values = np.zeros_like(values)
    if way in ("weights noise", "one weight", "a weight NaN", "weights of zeros"):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif way == "weights swapped":
        other = floats[int(draw.integers(len(floats)))]
        tensor.raw_data, other.raw_data = other.raw_data, tensor.raw_data
    elif way == "shape of a weight":
        tensor.dims[:] = [int(draw.integers(0, 2**40)) for _ in tensor.dims]
    elif way == "external data":
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key = "location"
        entry.value = ("../../../../../etc/passwd", "/etc/passwd", "reference.npz")[int(draw.integers(3))]
    elif way == "attribute" and node.attribute:
        attribute = node.attribute[int(draw.integers(len(node.attribute)))]
        odd = (0, 1, 2, 3, 7, -1, 2**31, 2**40)
        attribute.i = int(odd[int(draw.integers(len(odd)))])
        attribute.ints[:] = [int(odd[int(draw.integers(len(odd)))]) for _ in attribute.ints]
    elif way == "operator":
        node.op_type = ("Identity", "Relu", "Neg", "Conv", "If", "Loop", "Xyz", "")[int(draw.integers(8))]
    elif way == "node lost":
        graph.node.remove(node)
    elif way == "nodes swapped":
        other_node = graph.node[int(draw.integers(len(graph.node)))]
        node.output[0], other_node.output[0] = other_node.output[0], node.output[0]
    elif way == "edge lost" and node.input:
        node.input[int(draw.integers(len(node.input)))] = ("", "nothing", graph.input[0].name)[
            int(draw.integers(3))
        ]
    elif way == "output renamed":
        graph.output[0].name = "scores"
    elif way == "input shape":
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[int(draw.integers(len(dims)))].dim_value = int(draw.integers(0, 2**40))
    elif way == "opset":
        model.opset_import[0].version = int(draw.integers(0, 40))
    elif way == "metadata":
        entry = model.metadata_props[int(draw.integers(len(model.metadata_props)))]
        data, _ = mutated(entry.value.encode(), draw)
        entry.value = data.decode("utf-8", "replace")
    return f"graph: {way}", model.SerializeToString()
