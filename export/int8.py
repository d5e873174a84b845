"""int8 of a float32 graph: calibration, the form for a CPU, and what stays in float32. No TensorFlow."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import onnx

from evaluate.backends.onnx_backend import open_session
from export.simplify import backbone_nodes
from export.staging import ExportError

Method = Literal["minmax", "entropy", "percentile"]
Target = Literal["cpu", "tensorrt"]

# What ONNX Runtime computes in int8 on a CPU; other operators of the backbone stay in float32.
# Pooling to features is left out too: they are read in float32.
QUANTISED: Final = ("Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Pad")
CALIBRATION_BATCH: Final = 8  # entropy and percentile keep every intermediate tensor of a batch
SWEEP_IMAGES: Final = 32


@dataclass(frozen=True)
class Ranges:
    """The ranges of all activations, by a calibration.

    Attributes:
        values: ONNX Runtime's own object.
    """

    values: Any


class _Batches:
    """Images as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"images": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def calibrate(
    model: onnx.ModelProto, images: np.ndarray, *, method: Method, percentile: float = 99.99
) -> Ranges:
    """The range of every activation of the backbone.

    Args:
        model: the float32 graph.
        images: what its input `images` takes, (n, ...).
        method: minmax: all values; entropy: where the divergence of int8 is least; percentile: a share.
        percentile: of the values that are in the range, percent.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    kind = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[method]
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        onnx.save(onnx.shape_inference.infer_shapes(model), f"{folder}/model.onnx")
        calibrator = create_calibrator(
            Path(folder) / "model.onnx",
            list(QUANTISED),
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=kind,
            extra_options={"percentile": percentile} if method == "percentile" else {},
        )
        with redirect_stdout(io.StringIO()):  # it prints
            for start in range(0, len(images), CALIBRATION_BATCH):
                calibrator.collect_data(_Batches(images[start : start + CALIBRATION_BATCH]))
            return Ranges(calibrator.compute_data())


def to_int8(model: onnx.ModelProto, ranges: Ranges, *, in_float: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph with its backbone in int8 for a CPU: QDQ, U8 activations, S8 weights with a scale a channel.

    Args:
        model: the float32 graph.
        ranges: of its activations.
        in_float: names of nodes that stay in float32.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    wanted = [name for name in backbone_nodes(model) if name not in in_float]
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges.values,
        nodes_to_quantize=wanted,
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTISED),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised: onnx.ModelProto = quantizer.model.model
    del quantised.graph.value_info[:]
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


class Quantise(Protocol):
    """A form of int8, see `to_int8`."""

    def __call__(
        self, model: onnx.ModelProto, ranges: Ranges, *, in_float: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """The graph in int8."""
        ...


def quantise_within(
    model: onnx.ModelProto,
    ranges: Ranges,
    images: np.ndarray,
    *,
    acceptable: Callable[[onnx.ModelProto], bool],
    tell: Callable[[str], None],
    quantise: Quantise = to_int8,
) -> tuple[onnx.ModelProto, list[str]]:
    """int8, with as few convolutions left in float32 as the gate needs.

    If all of them in int8 are not acceptable, each is quantised alone to see what error it makes, and the
    worst 1, 2, 4, 8 ... stay in float32.

    Args:
        model: the float32 graph.
        ranges: of its activations.
        images: what its input takes; the first 32 are for the sweep.
        acceptable: whether a graph is good enough.
        tell: called with a line about what goes on.
        quantise: the form of int8.

    Returns:
        The graph, and the names of the convolutions in float32.

    Raises:
        ExportError: no graph with a convolution in int8 is acceptable.
    """
    quantised = quantise(model, ranges)
    if acceptable(quantised):
        return quantised, []
    backbone = set(backbone_nodes(model))
    convolutions = [
        node.name for node in model.graph.node if node.op_type == "Conv" and node.name in backbone
    ]
    tell(f"int8 is beyond its gate; looking for the sensitive ones of {len(convolutions)} convolutions")
    ranked = _by_error(model, ranges, images[:SWEEP_IMAGES], convolutions, quantise)
    count = 1
    while count < len(ranked):
        tell(f"int8 with {count} of {len(ranked)} convolutions in float32")
        quantised = quantise(model, ranges, in_float=ranked[:count])
        if acceptable(quantised):
            return quantised, ranked[:count]
        count *= 2
    raise ExportError(
        f"int8 must meet its gate with at least one of {len(ranked)} convolutions in int8; it did with none. "
        "Give more or other calibration images, or another --calibration-method."
    )


def _by_error(
    model: onnx.ModelProto,
    ranges: Ranges,
    images: np.ndarray,
    convolutions: Sequence[str],
    quantise: Quantise,
) -> list[str]:
    """The convolutions by the error that each makes alone in int8, the worst first."""
    wanted = _features(model, images)
    errors = {}
    everything = backbone_nodes(model)
    for name in convolutions:
        alone = quantise(model, ranges, in_float=[other for other in everything if other != name])
        errors[name] = float(np.linalg.norm(_features(alone, images) - wanted))
    return sorted(convolutions, key=lambda name: -errors[name])


def _features(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    features: np.ndarray = session.run(["features"], {"images": images})[0]
    return features
