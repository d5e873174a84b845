"""Damaged ONNX files, and whole ones that compute something else: never run beside the record of their export.

Without that record, parity.json, it is `verify` that must tell.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.checksums import PARITY
from evaluate.backends.onnx_backend import OnnxBackend
from export.parity import GATES
from export.reference import REFERENCE, read_reference
from export.verify import verify
from faults.commands import Commands
from faults.isolated import isolated
from faults.jobs import Made, make
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.plumbing.errors import DataError, SwavError

NAME = "model-fp32.onnx"
EVERY = 100  # files that are given to a runner and to `verify`, for one that is given to all commands


def run(plan: Plan) -> Iterator[Trial]:
    """Damage to bytes and changes to the graph, in turn; each file with its record and without."""
    commands = Commands(plan.folder)
    made = make(commands, plan.folder / "made")
    exported = made.exported
    whole = (exported / NAME).read_bytes()
    reference = read_reference(exported / REFERENCE)

    def damaged(number: int) -> tuple[str, bytes]:
        draw = plan.draw(number)
        if number % 2 == 0:
            data, how = mutated(whole, draw)
            return f"bytes: {how}", data
        return changed_graph(whole, draw)

    @contextmanager
    def folder_with(data: bytes, number: int) -> Iterator[Path]:
        folder = plan.folder / f"onnx-{number}"
        shutil.copytree(exported, folder)
        (folder / NAME).write_bytes(data)
        yield folder
        shutil.rmtree(folder)

    def outcome(number: int) -> tuple[str, str, str, str]:
        how, data = damaged(number)
        with folder_with(data, number) as folder:
            beside_record = "" if data == whole else _run_beside_record(folder / NAME)
            (folder / PARITY).unlink()
            return (*_told(folder / NAME, exported / NAME, reference), beside_record, how)

    for answer in isolated(outcome, list(plan.numbers)):
        told, wrong, beside_record, how = answer.value or ("", "", "", "")
        what = "ONNX file, changed graph" if answer.argument % 2 else "ONNX file, damaged bytes"
        for which, outcome_, finding in (
            (what, told, answer.broken or wrong),
            (f"{what}, beside its record", "refused in words", answer.broken or beside_record),
        ):
            finding = f"{how or damaged(answer.argument)[0]}: {shortened(finding)}" if finding else ""
            yield Trial(answer.argument, which, "broken" if finding else outcome_, finding=finding)
    for number in (number for number in plan.numbers if number % EVERY == 1):
        how, data = damaged(number)
        if data != whole:
            with folder_with(data, number) as folder:
                wrong = _commands_run(commands, folder, made)
            finding = f"{how}: {shortened(wrong)}" if wrong else ""
            yield Trial(
                number, "ONNX file beside its record, all commands", "refused in words", finding=finding
            )


def _run_beside_record(path: Path) -> str:
    """What is wrong where parity.json tells that this is another file."""
    for again in ("", " once `verify` has looked at it"):
        try:
            OnnxBackend(path, threads=1)
        except DataError:
            pass
        else:
            return f"is run{again}"
        [(_, parity)] = verify([path], threads=1).values()
        if parity.passed:
            return "verify passes"
    return ""


def _commands_run(commands: Commands, folder: Path, made: Made) -> str:
    """What is wrong with a command that is given the file."""
    path, out = folder / NAME, folder / "out"
    image = made.images / "class 0" / "00000.png"
    found = made.run.parent / "digits.npz"
    if not found.exists():
        commands.must_run(
            ["features", "digits", "--split", "test", "--model", made.exported / NAME, "--output", found]
        )
    for arguments in (
        ["features", "digits", "--split", "test", "--model", path, "--output", out / "features.npz"],
        ["similar", image, "--features", found, "--model", path, "--output", out / "similar.png"],
        ["benchmark", path, "--runner", "ort-cpu", "--batch", "1", "--seconds", "0.1", "--runs", "3"],
        ["export", path, "--to", "tensorrt", "--output", out / "engines", "--engine-cache", out / "cache"],
        ["verify", path],
    ):
        ended = commands.run(arguments)
        if ended.disgrace or ended.code not in (1, 2) or (out.exists() and any(out.rglob("*.*"))):
            return f"{arguments[0]}: {ended.disgrace or ended}"
    return ""


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
    right, got = OnnxBackend(whole, threads=1), OnnxBackend(path, threads=1)
    # Other images than those of the reference: right there and wrong elsewhere would be no proof.
    images = np.random.default_rng(1).integers(
        0, 256, (8, right.input_view.crop, right.input_view.crop, 3), dtype=np.uint8
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
