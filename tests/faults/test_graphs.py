"""Damaged ONNX files and altered graphs: never run next to their parity.json; without it, `verify` must find them."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evaluate.backends.checksums import PARITY
from evaluate.backends.onnx_backend import OnnxBackend
from export.parity import GATES
from export.verify import verify
from swav_tf.plumbing.errors import DataError, SwavError
from tests.faults.harness import DAMAGES, damage, damages, examples, randoms, refused, rounds

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(2400)]
NAME = "model-fp32.onnx"
CHANGES = (
    "noise on weights", "one weight", "a weight NaN", "weights of zeros", "weights swapped", "shape of a weight",
    "external data", "attribute", "operator", "node lost", "nodes swapped", "edge lost", "input shape", "metadata",
)  # fmt: skip


@pytest.fixture
def exported(inputs):
    return inputs["exported"]


@pytest.fixture
def copy(exported, folder):
    return shutil.copytree(exported, folder / "copy")


@given(how=damages, random=randoms)
@examples(300)
def test_damaged_bytes(exported, copy, worker, tally, how, random):
    data = damage((exported / NAME).read_bytes(), how, random)
    judge("ONNX, damaged bytes", worker, tally, exported, copy, data)


@given(how=st.sampled_from(CHANGES), random=randoms)
@examples(300)
def test_altered_graph(exported, copy, worker, tally, how, random):
    data = altered((exported / NAME).read_bytes(), how, random)
    assume(data != (exported / NAME).read_bytes())
    judge("ONNX, altered graph", worker, tally, exported, copy, data)


def judge(kind, worker, tally, exported, copy, data):
    (copy / NAME).write_bytes(data)
    shutil.copy(exported / PARITY, copy / PARITY)
    worker(check_with_record, copy / NAME)
    tally(f"{kind}, next to its parity.json", "refused")
    (copy / PARITY).unlink()
    tally(f"{kind}, alone", worker(verified, copy / NAME, exported / NAME))


def check_with_record(path: Path) -> None:
    for _ in range(2):  # also once `verify` has written its record
        with pytest.raises(DataError):
            OnnxBackend(path, threads=1)
        [(_, parity)] = verify([path], threads=1)[0].values()
        assert not parity.passed


def verified(path: Path, original: Path) -> str:
    try:
        [(_, parity)] = verify([path], threads=1)[0].values()
    except SwavError:
        return "refused"
    if not parity.passed:
        assert parity.failures
        assert all(parity.failures)
        return "verify fails"
    right, got = OnnxBackend(original, threads=1), OnnxBackend(path, threads=1)
    # Other images than the reference's: right there and wrong elsewhere would be no proof.
    side = right.input_view.crop
    images = np.random.default_rng(1).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    one, other = right.run(images)["features"], got.run(images)["features"]
    # The gate is for the reference's images; near it, others may be slightly beyond.
    gate = GATES[right.metadata.precision].relative_error
    assert gate is not None
    assert np.linalg.norm(one - other) / np.linalg.norm(one) <= 10 * gate
    assert right.metadata == got.metadata
    return "verify passes, the same features"


@pytest.mark.parametrize("number", rounds(4))
def test_all_commands_refuse(inputs, copy, random, tally, number):
    path, out = copy / NAME, copy / "out"
    path.write_bytes(damage(path.read_bytes(), random.choice(DAMAGES), random))
    for words in (
        ["features", "digits", "--split", "test", "--model", path, "--output", out / "x.npz"],
        [
            "similar",
            inputs["image"],
            "--features",
            inputs["features"],
            "--model",
            path,
            "--output",
            out / "x.png",
        ],
        ["benchmark", path, "--runner", "ort-cpu", "--batch", "1", "--seconds", "0.1", "--runs", "3"],
        ["export", path, "--to", "tensorrt", "--output", out / "engines"],
        ["verify", path],
    ):
        refused(*words)
        assert not any(out.rglob("*.*")), words
        tally(f"ONNX, damaged: {words[0]}", "refused")


def altered(original: bytes, how: str, random: Random) -> bytes:
    """Return a file that can be parsed, with something else in it."""
    import onnx

    model = onnx.load_model_from_string(original)
    graph, odd = model.graph, (0, 1, 2, 3, 7, -1, 2**31, 2**40)
    node, other = random.choice(graph.node), random.choice(graph.node)
    if "weight" in how or how == "external data":
        floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
        alter_weights(random.choice(floats), random.choice(floats), how, random)
    elif how == "attribute" and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i = random.choice(odd)
        attribute.ints[:] = [random.choice(odd) for _ in attribute.ints]
    elif how == "operator":
        node.op_type = random.choice(("Identity", "Relu", "Neg", "Conv", "If", "Loop", "Xyz", ""))
    elif how == "node lost":
        graph.node.remove(node)
    elif how == "nodes swapped":
        node.output[0], other.output[0] = other.output[0], node.output[0]
    elif how == "edge lost" and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(("", "nothing", graph.input[0].name))
    elif how == "input shape":
        random.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = random.randrange(2**40)
    elif how == "metadata":
        entry = random.choice(model.metadata_props)
        entry.value = damage(entry.value.encode() or b"x", random.choice(DAMAGES), random).decode(
            "utf-8", "replace"
        )
    return model.SerializeToString()


def alter_weights(tensor, other, how: str, random: Random) -> None:
    from onnx import TensorProto, numpy_helper

    values = numpy_helper.to_array(tensor).copy()
    place = random.randrange(values.size)
    if how == "weights swapped":
        tensor.raw_data, other.raw_data = other.raw_data, tensor.raw_data
        return
    if how == "shape of a weight":
        tensor.dims[:] = [random.randrange(2**40) for _ in tensor.dims]
        return
    if how == "external data":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        location = random.choice(("../../../../../etc/passwd", "/etc/passwd", "reference.npz"))
        tensor.external_data.add(key="location", value=location)
        return
    if how == "noise on weights":
        noise = np.random.default_rng(random.getrandbits(32)).normal(0, 0.05, values.shape)
        values = (values + noise * (np.abs(values).mean() + 1e-3)).astype(values.dtype)
    else:
        number = {"one weight": -3 * values.flat[place], "a weight NaN": np.nan}.get(how, 0)
        values.flat[slice(None) if how == "weights of zeros" else place] = number
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
