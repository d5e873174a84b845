"""How much arithmetic a network is, how fast the machine could do it, and what stands in the way. No TensorFlow.

The machine's limits are measured, not taken from a data sheet: `peak` is a large matrix product, `bandwidth` a
large element-wise maximum, both by the same runtime, on the same processor, in the same precision.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from evaluate.benchmark.probe_graph import ElementType, one_node
from evaluate.runners.onnx_metadata import Precision
from swav_tf.errors import DataError

Bound = Literal["transfer", "launch", "memory", "compute"]

SIDE: Final = {"cpu": 1536, "cuda": 8192}  # of the matrices
COPIED: Final = {"cpu": 2**25, "cuda": 2**28}  # float32 values: 128 MiB is beyond a core's caches
RUNS: Final = 7
SECONDS: Final = 0.7  # that a limit is looked for: a busy moment must not look like one
BYTES: Final[Mapping[Precision, float]] = {"fp32": 4, "fp16": 2, "int8": 1}
_PRODUCTS: Final[Mapping[Precision, tuple[str, ElementType, ElementType, ElementType]]] = {
    "fp32": ("MatMul", "float32", "float32", "float32"),
    "fp16": ("MatMul", "float16", "float16", "float16"),
    "int8": ("MatMulInteger", "uint8", "int8", "int32"),
}


@dataclass(frozen=True)
class Work:
    """The arithmetic of one image.

    Attributes:
        flops: two for each product that is summed, of convolutions and matrix products alone.
        weights: numbers in their kernels.
        activations: numbers that these operators read and write, kernels left out.
    """

    flops: float
    weights: float
    activations: float

    def bytes_per_image(self, precision: Precision, batch: int) -> float:
        """What must go through memory for an image, if each operator reads and writes it once."""
        return BYTES[precision] * (self.activations + self.weights / batch)


def count_work(path: Path) -> Work:
    """Counts one image through an ONNX file, by ONNX Runtime's own record of shapes.

    A dynamic image size is counted at the size of its preprocessing.

    Raises:
        DataError: the disk with the temporary files is full.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")  # it hides kernels
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = session.get_inputs()[0]
        how = json.loads(session.get_modelmeta().custom_metadata_map.get("preprocessing", "{}"))
        shape = [size if isinstance(size, int) else how.get("crop", 224) for size in wanted.shape]
        kind = np.uint8 if "uint8" in wanted.type else np.float32
        session.run(None, {wanted.name: np.zeros([1, *shape[1:]], kind)})
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except (OSError, ValueError) as error:  # ONNX Runtime does not tell that it could not write it whole
            raise DataError(
                f"The record of a run must fit on the disk with the temporary files, {folder}. Received: {error}. "
                "Make room there, or set TMPDIR to another folder."
            ) from error
    return work_of([event["args"] for event in events if event["name"].endswith("_kernel_time")])


def work_of(operators: Sequence[Mapping[str, Any]]) -> Work:
    """The sum over the operators of a profile of one image.

    Args:
        operators: with `op_name`, `input_type_shape`, `output_type_shape`, as ONNX Runtime writes them.
    """
    flops = weights = activations = 0.0
    for operator in operators:
        inputs = [next(iter(entry.values())) for entry in operator["input_type_shape"]]
        output = math.prod(next(iter(operator["output_type_shape"][0].values())))
        if operator["op_name"] == "Conv":
            each = math.prod(inputs[1][1:])
            kernel = math.prod(inputs[1])
        elif operator["op_name"] in ("MatMul", "Gemm"):
            each = inputs[0][-1]
            # Its kernel may be missing from the record; of one image it has as many numbers as products.
            kernel = math.prod(inputs[1]) if len(inputs) > 1 else output * each
        else:
            continue
        flops += 2.0 * output * each
        weights += kernel
        activations += math.prod(inputs[0]) + output
    return Work(flops, weights, activations)


# === The machine's limits ===


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


# === What bounds a cell ===


@dataclass(frozen=True)
class Limits:
    """What the machine can do.

    Attributes:
        flops: operations a second in the cell's precision.
        bandwidth: bytes a second.
    """

    flops: float
    bandwidth: float

    def attainable(self, work: Work, precision: Precision, batch: int) -> float:
        """Images a second, if nothing but arithmetic and memory cost time: the roofline."""
        return min(self.flops / work.flops, self.bandwidth / work.bytes_per_image(precision, batch))

    def by_memory(self, work: Work, precision: Precision, batch: int) -> bool:
        """Whether memory is the lower of the two."""
        return self.bandwidth / work.bytes_per_image(precision, batch) < self.flops / work.flops


def what_bounds(
    *, transfer_share: float | None, fixed_share: float | None, by_memory: bool | None
) -> Bound | None:
    """The largest part of a call's time.

    Args:
        transfer_share: of copies between host and GPU, 0 to 1; None where there are none.
        fixed_share: of what a call costs whatever the batch, 0 to 1; None if not known.
        by_memory: whether the roofline here is that of memory; None if not known.

    Returns:
        transfer or launch where they take half of the time or more; else memory or compute; None if not known.
    """
    shares: dict[Bound, float] = {"transfer": transfer_share or 0.0, "launch": fixed_share or 0.0}
    largest = max(shares, key=lambda name: shares[name])
    if shares[largest] >= 0.5:
        return largest
    return None if by_memory is None else ("memory" if by_memory else "compute")
