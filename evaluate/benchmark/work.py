"""How much arithmetic a network is, counted from what ONNX Runtime runs. No TensorFlow."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.onnx_metadata import Precision
from swav_tf.plumbing.errors import DataError

BYTES: Final[Mapping[Precision, float]] = {"fp32": 4, "fp16": 2, "int8": 1}


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
