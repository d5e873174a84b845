"""Arithmetic of a network, limits of a machine, and what bounds a cell."""

from pathlib import Path

import numpy as np
import pytest

from evaluate.backends.onnx_backend import open_session
from evaluate.benchmark.probe_graph import one_node
from evaluate.benchmark.roofline import Limits, what_bounds
from evaluate.benchmark.work import Work, count_work, work_of
from swav_tf.plumbing.errors import DataError
from tests.evaluate.exported import FEATURES, make_exported


def operator(name, inputs, output):
    return {
        "op_name": name,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }


# Bugs caught: groups counted as if they were none, a bias that counts, products taken for operations.
def test_work_of_operators() -> None:
    work = work_of(
        [
            operator("Conv", [[1, 8, 10, 10], [16, 2, 3, 3], [16]], [1, 16, 5, 5]),
            operator("Relu", [[1, 16, 5, 5]], [1, 16, 5, 5]),
            operator("MatMul", [[1, 400]], [1, 7]),  # its kernel is not in the record
            operator("Gemm", [[1, 7], [7, 3], [3]], [1, 3]),
        ]
    )
    products = 16 * 5 * 5 * 2 * 3 * 3 + 400 * 7 + 7 * 3
    assert work.flops == 2 * products
    assert work.weights == 16 * 2 * 9 + 400 * 7 + 7 * 3
    assert work.activations == (800 + 400) + (400 + 7) + (7 + 3)
    assert work.bytes_per_image("fp16", 4) == 2 * (work.activations + work.weights / 4)


# Bug caught: a graph by hand that ONNX Runtime reads otherwise than it was meant.
def test_graphs_by_hand() -> None:
    draw = np.random.default_rng(0)
    a = draw.integers(0, 256, (300, 20), dtype=np.uint8)
    b = draw.integers(-128, 128, (20, 5), dtype=np.int8)
    graph = one_node(
        "MatMulInteger", {"a": ("uint8", a.shape), "b": ("int8", b.shape)}, ("c", "int32", (300, 5))
    )
    [found] = open_session(graph).run(["c"], {"a": a, "b": b})
    assert (found == a.astype(np.int32) @ b.astype(np.int32)).all()


# Bug caught: arithmetic that depends on the precision of the file.
def test_all_precisions_of_a_network_are_the_same_work(tmp_path) -> None:
    exported = make_exported(tmp_path / "tiny", ("fp32", "fp16"))
    works = [count_work(path) for path in sorted(exported.glob("*.onnx"))]
    assert len(works) == 2
    assert len(set(works)) == 1
    assert works[0].flops == 2 * 16 * FEATURES * 27


# Bug caught: a full disk that is told as JSON that could not be read.
def test_a_record_that_is_cut_off_is_told(tmp_path, monkeypatch) -> None:
    [path] = make_exported(tmp_path / "tiny", ("fp32",)).glob("*.onnx")
    monkeypatch.setattr(Path, "read_text", lambda self: "[{")
    with pytest.raises(DataError, match="must fit on the disk"):
        count_work(path)


def test_the_lower_roof_counts() -> None:
    work = Work(flops=1e6, weights=1e3, activations=1e4)
    compute, memory = Limits(flops=1e9, bandwidth=1e12), Limits(flops=1e12, bandwidth=1e7)
    assert compute.attainable(work, "fp32", 1) == 1e3
    assert not compute.by_memory(work, "fp32", 1)
    assert memory.attainable(work, "fp32", 1) == pytest.approx(1e7 / (4 * 1.1e4))
    assert memory.by_memory(work, "fp32", 1)


@pytest.mark.parametrize(
    ("transfer", "fixed", "by_memory", "bound"),
    [
        (0.7, 0.6, False, "transfer"),
        (0.2, 0.5, None, "launch"),
        (0.49, 0.49, True, "memory"),
        (None, None, False, "compute"),
        (None, 0.1, None, None),
    ],
)
def test_what_bounds(transfer, fixed, by_memory, bound) -> None:
    assert what_bounds(transfer_share=transfer, fixed_share=fixed, by_memory=by_memory) == bound
