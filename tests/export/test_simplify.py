"""Rewrites of a graph: less to compute, the same result."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.simplify import simplify

SIDE = 9


def graph_of(*, before_pad="Relu", pads=(0, 0, 1, 1, 0, 0, 1, 1), value=0.0, kernel=3, extra_reader=False):
    """Bytes to normalised channels, a convolution, and a pool over padded values."""
    draw = np.random.default_rng(0)
    constants = {
        "by": np.float32(1 / 255),
        "mean": np.array([0.5, 0.4, 0.3], np.float32),
        "by_std": 1 / np.array([0.2, 0.25, 0.3], np.float32),
        "kernel": draw.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "pads": np.array(pads, np.int64),
        "value": np.float32(value),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT, name="1"),
        helper.make_node("Mul", ["a", "by"], ["b"], name="2"),
        helper.make_node("Sub", ["b", "mean"], ["c"], name="3"),
        helper.make_node("Mul", ["c", "by_std"], ["d"], name="4"),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 3, 1, 2], name="5"),
        helper.make_node("Conv", ["e", "kernel"], ["f"], name="6"),
        helper.make_node(before_pad, ["f"], ["g"], name="7"),
        helper.make_node("Pad", ["g", "pads", "value"], ["h"], name="8"),
        helper.make_node("MaxPool", ["h"], ["out"], kernel_shape=[kernel, kernel], strides=[2, 2], name="9"),
    ]
    outputs = ["out", *(["c", "h"] if extra_reader else [])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("nchw")) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model):
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["out"], {"images": images})[0]


# Bugs caught: mean and deviation swapped or of another channel, margins on the wrong side.
@pytest.mark.parametrize("pads", [(0, 0, 1, 1, 0, 0, 1, 1), (0, 0, 2, 0, 0, 0, 1, 2)])
def test_the_same_in_fewer_nodes(pads) -> None:
    model = graph_of(pads=pads)
    wanted = run(model)
    simplify(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        "Cast", "Reshape", "Mul", "Sub", "Reshape", "Transpose", "Conv", "Relu", "MaxPool",
    ]  # fmt: skip
    names = {tensor.name for tensor in model.graph.initializer}
    assert names == {"kernel", *(f"normalise/{name}" for name in ("row", "factor", "shift", "image"))}
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)
    again = model.SerializeToString()
    simplify(model.graph)
    assert model.SerializeToString() == again


def test_images_of_any_size_are_normalised_as_before() -> None:
    model = graph_of()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    simplify(model.graph)
    assert [node.op_type for node in model.graph.node].count("Mul") == 2


# Bugs caught: a pad left out whose zeros count, one that others read, one as wide as the pool.
@pytest.mark.parametrize(
    "changes",
    [
        {"before_pad": "Identity"},
        {"value": 0.5},
        {"pads": (0, 1, 1, 1, 0, 0, 1, 1)},
        {"kernel": 1},
        {"extra_reader": True},
    ],
)
def test_what_would_not_be_the_same_stays(changes) -> None:
    model = graph_of(**changes)
    wanted = run(model)
    simplify(model.graph)
    operators = [node.op_type for node in model.graph.node]
    assert "Pad" in operators
    assert (operators.count("Mul") == 2) == ("extra_reader" in changes)
    np.testing.assert_allclose(run(model), wanted, rtol=1e-5, atol=1e-5)
