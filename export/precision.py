"""Lower the precision of a float32 graph's backbone: fp16, and int8 for CPUs and for TensorRT.

int8 is calibrated, and a search finds what must stay in float32 to meet the gate.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.backends.onnx_metadata import OnnxMetadata
from export.onnx_file import check, save_model, without_weights
from export.parity import GATES, compare, run_all
from export.reference import Reference, Views
from export.settings import ExportSettings
from export.simplify import backbone_nodes, keep_read_weights
from export.staging import ExportError
from swav_tf.plumbing.log import log

MAX_HALF: Final = float(np.finfo(np.float16).max)
# The operators that ONNX Runtime computes in int8 on a CPU. Pooling to features is left out: they are read in float32.
QUANTIZED: Final = ("Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Pad")
LARGEST: Final = 127  # of int8, both ways
CALIBRATION_BATCH: Final = 8
SWEEP_IMAGES: Final = 32
# Other images are compared in the end, and keep a little more or less: the search leaves a margin.
SEARCH_GATE: Final = replace(GATES["int8"], neighbor_overlap=0.93)
MEASURED: Final = 16  # convolutions at most whose error is measured; a measurement runs the graph

Quantizer = Callable[..., onnx.ModelProto]  # `to_int8` or `to_int8_tensorrt`


# === fp16 ===


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its backbone in float16; inputs, outputs, head and prototypes stay float32.

    There is one cast at each border. (ONNX Runtime's converter puts two between any two nodes that it is
    configured to leave alone, so that these lose their precision all the same.)
    """
    types = _types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = set(backbone_nodes(model))
    inside = {output for node in model.graph.node if node.name in names for output in node.output}
    used_outside = {output.name for output in model.graph.output}
    used_outside |= {name for node in model.graph.node if node.name not in names for name in node.input}

    nodes: list[onnx.NodeProto] = []
    half_weights: dict[str, onnx.TensorProto] = {}
    cast_down: set[str] = set()
    for original in model.graph.node:
        node = deepcopy(original)
        nodes.append(node)
        if node.name not in names:
            continue
        for place, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT:
                continue
            if name in weights:
                half_weights.setdefault(name, _half(weights[name]))
            elif name not in inside and name not in cast_down:
                cast_down.add(name)
                nodes.insert(len(nodes) - 1, _cast(name, _half_name(name), TensorProto.FLOAT16))
            node.input[place] = _half_name(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        for place, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT:
                continue
            node.output[place] = _half_name(name)
            if name in used_outside:
                nodes.append(_cast(_half_name(name), name, TensorProto.FLOAT))

    half = without_weights(model, as_inputs=False)
    del half.graph.node[:], half.graph.initializer[:]
    half.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}  # copying only these saves memory
    half.graph.initializer.extend(tensor for name, tensor in weights.items() if name in read)
    half.graph.initializer.extend(half_weights.values())
    check(half)  # also finds types that do not fit
    return half


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(without_weights(model, as_inputs=True)).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if largest > MAX_HALF:
        raise ExportError(
            f"Weights must be within {MAX_HALF:g} for fp16. Received: {largest:g} in {tensor.name}."
        )
    return numpy_helper.from_array(values.astype(np.float16), _half_name(tensor.name))


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _half_name(name: str) -> str:
    return f"{name}_fp16"


# === int8 ===


def to_int8(model: onnx.ModelProto, ranges: Any, *, in_float: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph with its backbone in int8 for a CPU, without the nodes `in_float`.

    Nodes are between QDQ pairs: activations U8, weights S8 with a scale for each channel.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[name for name in backbone_nodes(model) if name not in in_float],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZED),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    del quantized.graph.value_info[:]
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def to_int8_tensorrt(model: onnx.ModelProto, ranges: Any, *, in_float: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph with its backbone's convolutions in int8 for TensorRT, without the nodes `in_float`.

    TensorRT refuses zero points other than 0, takes biases in float32, and fuses a convolution with the sum of a
    residual block only if the *other* operand is quantized. So the QDQ pairs are not where they are for a CPU:
    every convolution and the shortcut of every residual sum read one; weights are stored in int8 with a scale
    for each output channel.
    """
    chosen = set(backbone_nodes(model)).difference(in_float)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = {  # their places, by output
        node.output[0]: place
        for place, node in enumerate(model.graph.node)
        if node.op_type == "Conv" and node.name in chosen
    }
    pairs = _Pairs(ranges)
    for original in model.graph.node:
        node = deepcopy(original)
        if node.name in chosen and node.op_type == "Conv":
            node.input[0] = pairs.around(node.input[0])
            node.input[1] = pairs.of_weights(weights[node.input[1]])
        elif node.name in chosen and node.op_type == "Add" and convolutions.keys() & set(node.input):
            last = max(node.input, key=lambda name: convolutions.get(name, -1))
            place = 1 - list(node.input).index(last)
            node.input[place] = pairs.around(node.input[place])
        pairs.nodes.append(node)

    quantized = deepcopy(model)
    del quantized.graph.node[:]
    quantized.graph.node.extend(pairs.nodes)
    quantized.graph.initializer.extend(pairs.constants)
    keep_read_weights(quantized.graph)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


class _Pairs:
    """Nodes of a new graph in order, and constants, with one QDQ pair for each tensor."""

    def __init__(self, ranges: Any) -> None:
        self._data = ranges.data
        self._done: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def around(self, name: str) -> str:
        """Append the pair of an activation and return its output."""
        if name not in self._done:
            low, high = (float(np.ravel(end)[0]) for end in self._data[name].range_value)
            largest = max(abs(low), abs(high))
            scale = self._scale(name, np.float32(largest / LARGEST if largest else 1.0))
            stored = self._add("QuantizeLinear", [name, *scale], f"{name}_quantised")
            self._done[name] = self._add("DequantizeLinear", [stored, *scale], f"{name}_dequantised")
        return self._done[name]

    def of_weights(self, tensor: onnx.TensorProto) -> str:
        """Store weights (output channels, ...) in int8, append their DequantizeLinear and return its output."""
        if tensor.name not in self._done:
            values = numpy_helper.to_array(tensor)
            largest = np.abs(values).reshape(len(values), -1).max(axis=1)
            scales = (np.where(largest > 0, largest, LARGEST) / LARGEST).astype(np.float32)
            rounded = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
            integers, stored = rounded.clip(-LARGEST, LARGEST).astype(np.int8), f"{tensor.name}_int8"
            self.constants.append(numpy_helper.from_array(integers, stored))
            scale, output = self._scale(tensor.name, scales), f"{tensor.name}_dequantised"
            self._done[tensor.name] = self._add("DequantizeLinear", [stored, *scale], output, axis=0)
        return self._done[tensor.name]

    def _scale(self, name: str, scale: np.ndarray | np.float32) -> tuple[str, str]:
        scales = np.asarray(scale, np.float32)
        self.constants += [
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}_zero"),
        ]
        return f"{name}_scale", f"{name}_zero"

    def _add(self, operator: str, inputs: Sequence[str], output: str, axis: int | None = None) -> str:
        # An axis of None is omitted.
        node = helper.make_node(operator, inputs, [output], name=f"{output}_{operator}", axis=axis)
        self.nodes.append(node)
        return output


def save_int8(
    graph: onnx.ModelProto, metadata: OnnxMetadata, path: Path, settings: ExportSettings, drawn: Views
) -> list[str]:
    """Write the file that meets its gate on the images of the calibration; return the convolutions in float32."""
    inputs, reference = _in_float32(graph, metadata, path.with_suffix(".float32"), drawn)

    def failures(candidate: onnx.ModelProto) -> Sequence[str]:
        save_model(candidate, metadata, path)
        return compare(reference, run_all(OnnxBackend(path), drawn.images), gate=SEARCH_GATE).failures

    log.info("int8: calibration on %d images", len(drawn.images))
    ranges = calibrate(graph, inputs)
    on_cpu = settings.target == "cpu"
    quantizer = to_int8 if on_cpu else to_int8_tensorrt
    quantized, kept = quantize_within(graph, ranges, inputs, failures_of=failures, quantizer=quantizer)
    activations = "uint8" if on_cpu else "int8"
    quantization = {
        "target": settings.target,
        "scheme": f"QDQ, activations {activations}, weights int8 with a scale for each channel",
        "calibration": "minmax",
        **drawn.facts,
        "float32_convolutions": kept,
    }
    save_model(quantized, metadata.model_copy(update={"quantisation": quantization}), path)
    return kept


def _in_float32(
    graph: onnx.ModelProto, metadata: OnnxMetadata, path: Path, drawn: Views
) -> tuple[np.ndarray, Reference]:
    """Return the graph's input for the images, and its float32 outputs to compare int8 with."""
    save_model(graph, metadata.model_copy(update={"precision": "fp32"}), path)
    backend = OnnxBackend(path)
    path.unlink()
    outputs, real = run_all(backend, drawn.images), np.ones(len(drawn.images), bool)
    reference = Reference(
        drawn.images, drawn.labels, real, outputs, metadata.weights_sha256, backend.input_view, facts={}
    )
    return metadata.preprocessing.apply(drawn.images), reference


def calibrate(model: onnx.ModelProto, images: np.ndarray) -> Any:
    """Return the least and greatest value of every activation of a float32 graph as ONNX Runtime's TensorsData."""
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        onnx.save(onnx.shape_inference.infer_shapes(model), f"{folder}/model.onnx")
        calibrator = create_calibrator(
            Path(folder) / "model.onnx",
            list(QUANTIZED),
            augmented_model_path=f"{folder}/augmented.onnx",
        )
        with redirect_stdout(io.StringIO()):  # it prints
            for start in range(0, len(images), CALIBRATION_BATCH):
                batch = {"images": images[start : start + CALIBRATION_BATCH]}
                calibrator.collect_data(SimpleNamespace(get_next=partial(next, iter([batch]), None)))
            return calibrator.compute_data()


def quantize_within(
    model: onnx.ModelProto,
    ranges: Any,
    images: np.ndarray,
    *,
    failures_of: Callable[[onnx.ModelProto], Sequence[str]],
    quantizer: Quantizer = to_int8,
) -> tuple[onnx.ModelProto, list[str]]:
    """Quantize, and leave as few convolutions in float32 as the gate needs.

    If all of them in int8 miss the gate, they are ranked by the error of their weights and input; of the first
    MEASURED, each is quantized alone to measure its error. The worst 1, 2, 4, 8 ... and at last all but one stay in
    float32. Return the graph and their names.
    """
    quantized = quantizer(model, ranges)
    if not (failures := failures_of(quantized)):
        return quantized, []
    backbone = set(backbone_nodes(model))
    convolutions = [
        node.name for node in model.graph.node if node.op_type == "Conv" and node.name in backbone
    ]
    log.info(
        "int8 misses its gate: %s; searching for the most sensitive of %d convolutions, measuring %d",
        "; ".join(failures), len(convolutions), min(MEASURED, len(convolutions)),
    )  # fmt: skip
    ranked = _by_error(model, ranges, images[:SWEEP_IMAGES], convolutions, quantizer)
    count, most = 1, len(ranked) - 1
    while count <= most:
        log.info("int8 with %d of %d convolutions in float32", count, len(ranked))
        quantized = quantizer(model, ranges, in_float=ranked[:count])
        if not (failures := failures_of(quantized)):
            return quantized, ranked[:count]
        log.info("int8 still misses its gate: %s", "; ".join(failures))
        count = max(count + 1, min(2 * count, most))
    raise ExportError(
        f"int8 misses its gate even with only one of {len(ranked)} convolutions in int8: {'; '.join(failures)}. "
        "Pass more or different --calibration images, or use fp16."
    )


def _by_error(
    model: onnx.ModelProto, ranges: Any, images: np.ndarray, convolutions: Sequence[str], quantizer: Quantizer
) -> list[str]:
    """Sort convolutions, worst first: MEASURED of them by the error of each alone in int8, the rest by rounding."""
    exact, backbone = _features(model, images), backbone_nodes(model)
    rounding = _rounding(model, ranges, convolutions)
    likely = sorted(convolutions, key=lambda name: -rounding[name])
    errors: dict[str, float] = {}
    started = time.monotonic()
    for number, name in enumerate(likely[:MEASURED], 1):
        alone = quantizer(model, ranges, in_float=[other for other in backbone if other != name])
        errors[name] = float(np.linalg.norm(_features(alone, images) - exact))
        left = min(MEASURED, len(likely)) - number
        seconds = (time.monotonic() - started) / number * left
        log.info("int8: measured %d convolutions, %d left, about %.0f s", number, left, seconds)
    return sorted(errors, key=lambda name: -errors[name]) + likely[MEASURED:]


def _rounding(model: onnx.ModelProto, ranges: Any, convolutions: Sequence[str]) -> dict[str, float]:
    """Return the share of a convolution's weights and input that int8 cannot represent, without running the graph.

    For the input it is the step of the range over the range that most of its values have: that of the other
    inputs' median.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node if node.name in set(convolutions)}
    spans = {}
    for name, node in nodes.items():
        spans[name] = max(abs(float(np.ravel(end)[0])) for end in ranges.data[node.input[0]].range_value)
    usual = float(np.median(list(spans.values()))) or 1.0
    shares = {}
    for name, node in nodes.items():
        values = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        flat = values.reshape(len(values), -1)
        step = np.abs(flat).max(axis=1, keepdims=True) / 127
        error = np.linalg.norm(flat - np.rint(flat / np.where(step > 0, step, 1)) * step)
        shares[name] = float(error) / max(float(np.linalg.norm(flat)), 1e-12) + spans[name] / usual / 255
    return shares


def _features(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    features: np.ndarray = session.run(["features"], {"images": images})[0]
    return features
