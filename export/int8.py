"""Quantize a float32 graph to int8: calibrate, and search for what must stay in float32 to meet the gate."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.backends.onnx_metadata import OnnxMetadata
from export.onnx_file import save_model
from export.parity import GATES, compare, run_all
from export.precision import QUANTIZED, to_int8, to_int8_tensorrt
from export.reference import Reference, Views
from export.settings import ExportSettings
from export.simplify import backbone_nodes
from export.staging import ExportError
from swav_tf.plumbing.log import log

CALIBRATION_BATCH: Final = 8
SWEEP_IMAGES: Final = 32
# Other images are compared in the end, and keep a little more or less: the search leaves a margin.
SEARCH_GATE: Final = replace(GATES["int8"], neighbor_overlap=0.93)
MEASURED: Final = 16  # convolutions at most whose error is measured; a measurement runs the graph


Quantizer = Callable[..., onnx.ModelProto]  # `to_int8` or `to_int8_tensorrt`


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
    MEASURED, each is quantized alone to measure its error. The worst 1, 2, 4, 8 ... stay in float32. Return the graph
    and their names.
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
    count = 1
    while count < len(ranked):
        log.info("int8 with %d of %d convolutions in float32", count, len(ranked))
        quantized = quantizer(model, ranges, in_float=ranked[:count])
        if not (failures := failures_of(quantized)):
            return quantized, ranked[:count]
        log.info("int8 still misses its gate: %s", "; ".join(failures))
        count *= 2
    raise ExportError(
        f"int8 must meet its gate with at least one of {len(ranked)} convolutions in int8; it did with none: "
        f"{'; '.join(failures)}. "
        "Use more or other calibration images."
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
