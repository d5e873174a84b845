"""How fast a machine multiplies and moves numbers: measured, not taken from a data sheet. No TensorFlow.

Both by ONNX Runtime, on the processor and in the precision of the cells: a large matrix product, and a large
element-wise maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.probe_graph import ElementType, one_node

SIDE: Final = {"cpu": 1536, "cuda": 8192}  # of the matrices
COPIED: Final = {"cpu": 2**25, "cuda": 2**28}  # float32 values: 128 MiB is beyond a core's caches
RUNS: Final = 7
SECONDS: Final = 0.7  # that a limit is looked for: a busy moment must not look like one
_PRODUCTS: Final[Mapping[Precision, tuple[str, ElementType, ElementType, ElementType]]] = {
    "fp32": ("MatMul", "float32", "float32", "float32"),
    "fp16": ("MatMul", "float16", "float16", "float16"),
    "int8": ("MatMulInteger", "uint8", "int8", "int32"),
}


def measure_peak(
    precision: Precision, session_of: Callable[[bytes], Any], *, device: Literal["cpu", "cuda"]
) -> float:
    """Operations (two for each product) a second of a large matrix product, the best of some runs.

    Args:
        precision: of the factors; fp16 on a CPU is computed in fp32, as ONNX Runtime does with a network.
        session_of: opens a graph in ONNX Runtime.
        device: where its tensors lie.
    """
    if device == "cpu" and precision == "fp16":
        precision = "fp32"
    operator, left, right, result = _PRODUCTS[precision]
    side = SIDE[device]
    shape = (side, side)
    graph = one_node(operator, {"a": (left, shape), "b": (right, shape)}, ("c", result, shape))
    arrays = {"a": np.ones(shape, left), "b": np.ones(shape, right)}
    return 2.0 * side**3 / _best_seconds(session_of(graph), arrays, device)


def measure_bandwidth(session_of: Callable[[bytes], Any], *, device: Literal["cpu", "cuda"]) -> float:
    """Bytes a second, read and written together, of an element-wise maximum of large tensors."""
    count = COPIED[device]
    graph = one_node("Relu", {"a": ("float32", [count])}, ("c", "float32", [count]))
    return 8.0 * count / _best_seconds(session_of(graph), {"a": np.ones(count, np.float32)}, device)


def _best_seconds(session: Any, arrays: Mapping[str, np.ndarray], device: str) -> float:
    """On tensors that lie where they are computed; the best: what others take is not the machine's limit."""
    import onnxruntime as ort

    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    binding.bind_output("c", device)
    times: list[float] = []
    while len(times) < RUNS or sum(times) < SECONDS:
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - began)
    return min(times[1:])
