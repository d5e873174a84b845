"""Quantize a float32 graph to int8: calibration, the search for what must stay in float32, the form for CPUs."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx

from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.backends.onnx_metadata import OnnxMetadata
from export.int8_tensorrt import to_int8_tensorrt
from export.onnx_file import save_model
from export.parity import GATES, compare, run_all
from export.reference import Drawn, Reference
from export.settings import ExportSettings, Method
from export.simplify import backbone_nodes
from export.staging import ExportError
from swav_tf.plumbing.log import log

# The operators that ONNX Runtime computes in int8 on a CPU. Pooling to features is left out: they are read in float32.
QUANTIZED: Final = ("Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Pad")
CALIBRATION_BATCH: Final = 8  # entropy and percentile keep every intermediate tensor of a batch
SWEEP_IMAGES: Final = 32


class Quantizer(Protocol):
    """A form of int8."""

    def __call__(
        self, model: onnx.ModelProto, ranges: Any, *, in_float: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """Return a float32 graph in int8, without the nodes `in_float`."""
        ...


def save_int8(
    graph: onnx.ModelProto, facts: OnnxMetadata, path: Path, settings: ExportSettings, drawn: Drawn
) -> list[str]:
    """Calibrate, quantize and write the file that meets its gate on the images of the calibration.

    Args:
        graph: in float32.
        facts: metadata but for precision and quantization.
        path: of the file, in a staging folder.
        settings: target and calibration.
        drawn: images for the calibration.

    Returns:
        Names of the convolutions that stayed in float32.

    Raises:
        ExportError: no graph with a convolution in int8 meets the gate.
    """
    inputs, reference = _in_float32(graph, facts, path.with_suffix(".float32"), drawn)
    facts = facts.model_copy(update={"precision": "int8"})

    def acceptable(candidate: onnx.ModelProto) -> bool:
        save_model(candidate, facts, path)
        return compare(reference, run_all(OnnxBackend(path), drawn.views), gate=GATES["int8"]).passed

    log.info("int8: calibration (%s) on %d images", settings.calibration, len(drawn.views))
    ranges = calibrate(graph, inputs, method=settings.calibration, percentile=settings.percentile)
    quantizer: Quantizer = to_int8 if settings.target == "cpu" else to_int8_tensorrt
    quantized, kept = quantize_within(graph, ranges, inputs, acceptable=acceptable, quantizer=quantizer)
    activations = "uint8" if settings.target == "cpu" else "int8"
    quantization = {
        "target": settings.target,
        "scheme": f"QDQ, activations {activations}, weights int8 with a scale for each channel",
        "calibration": settings.calibration,
        "percentile": settings.percentile if settings.calibration == "percentile" else None,
        **drawn.facts,
        "float32_convolutions": kept,
    }
    save_model(quantized, facts.model_copy(update={"quantisation": quantization}), path)
    return kept


def calibrate(
    model: onnx.ModelProto, images: np.ndarray, *, method: Method, percentile: float = 99.99
) -> Any:
    """Return the range of every activation of the backbone as ONNX Runtime's TensorsData.

    Args:
        model: the float32 graph.
        images: for its input `images`, (n, ...).
        method: minmax: all values; entropy: where the divergence of int8 is least; percentile: a share.
        percentile: share of the values inside the range, percent.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        onnx.save(onnx.shape_inference.infer_shapes(model), f"{folder}/model.onnx")
        calibrator = create_calibrator(
            Path(folder) / "model.onnx",
            list(QUANTIZED),
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=CalibrationMethod[methods[method]],
            extra_options={"percentile": percentile} if method == "percentile" else {},
        )
        with redirect_stdout(io.StringIO()):  # it prints
            for start in range(0, len(images), CALIBRATION_BATCH):
                calibrator.collect_data(_Batches(images[start : start + CALIBRATION_BATCH]))
            return calibrator.compute_data()


class _Batches:
    """Images in the form that ONNX Runtime's calibration reads."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"images": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def to_int8(model: onnx.ModelProto, ranges: Any, *, in_float: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph with its backbone in int8 for a CPU: QDQ, U8 activations, S8 weights with a scale a channel.

    Args:
        model: the float32 graph.
        ranges: of its activations, see `calibrate`.
        in_float: names of nodes that stay in float32.
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


def quantize_within(
    model: onnx.ModelProto,
    ranges: Any,
    images: np.ndarray,
    *,
    acceptable: Callable[[onnx.ModelProto], bool],
    quantizer: Quantizer = to_int8,
) -> tuple[onnx.ModelProto, list[str]]:
    """Quantize, and leave as few convolutions in float32 as the gate needs.

    If all of them in int8 are not acceptable, each is quantized alone to measure its error, and the
    worst 1, 2, 4, 8 ... stay in float32.

    Args:
        model: the float32 graph.
        ranges: of its activations, see `calibrate`.
        images: for its input; the search takes the first 32.
        acceptable: return whether a graph is good enough.
        quantizer: the form of int8.

    Returns:
        The graph, and the names of the convolutions in float32.

    Raises:
        ExportError: no graph with a convolution in int8 is acceptable.
    """
    quantized = quantizer(model, ranges)
    if acceptable(quantized):
        return quantized, []
    backbone = set(backbone_nodes(model))
    convolutions = [
        node.name for node in model.graph.node if node.op_type == "Conv" and node.name in backbone
    ]
    log.info("int8 misses its gate; looking for the sensitive ones of %d convolutions", len(convolutions))
    ranked = _by_error(model, ranges, images[:SWEEP_IMAGES], convolutions, quantizer)
    count = 1
    while count < len(ranked):
        log.info("int8 with %d of %d convolutions in float32", count, len(ranked))
        quantized = quantizer(model, ranges, in_float=ranked[:count])
        if acceptable(quantized):
            return quantized, ranked[:count]
        count *= 2
    raise ExportError(
        f"int8 must meet its gate with at least one of {len(ranked)} convolutions in int8; it did with none. "
        "Give more or other calibration images, or another --calibration-method."
    )


def _by_error(
    model: onnx.ModelProto,
    ranges: Any,
    images: np.ndarray,
    convolutions: Sequence[str],
    quantizer: Quantizer,
) -> list[str]:
    """Sort convolutions by the error of each alone in int8, the worst first."""
    exact = _features(model, images)
    backbone = backbone_nodes(model)
    errors = {}
    for number, name in enumerate(convolutions, 1):
        alone = quantizer(model, ranges, in_float=[other for other in backbone if other != name])
        errors[name] = float(np.linalg.norm(_features(alone, images) - exact))
        if number % 10 == 0:
            log.info("int8: measured %d of %d convolutions", number, len(convolutions))
    return sorted(convolutions, key=lambda name: -errors[name])


def _features(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    features: np.ndarray = session.run(["features"], {"images": images})[0]
    return features


def _in_float32(
    graph: onnx.ModelProto, facts: OnnxMetadata, path: Path, drawn: Drawn
) -> tuple[np.ndarray, Reference]:
    """Return the graph's input for the images, and its float32 outputs to compare int8 with."""
    save_model(graph, facts.model_copy(update={"precision": "fp32"}), path)
    runner = OnnxBackend(path)
    path.unlink()
    reference = Reference(
        images=drawn.views,
        labels=drawn.labels,
        real=np.ones(len(drawn.views), bool),
        outputs=run_all(runner, drawn.views),
        weights_sha256=facts.weights_sha256,
        view=runner.input_view,
        facts={},
    )
    return runner.metadata.preprocessing.apply(drawn.views), reference
