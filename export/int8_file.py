"""int8 that keeps to its gate, as a file. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import OnnxMetadata
from export.int8 import calibrate, quantise_within, to_int8
from export.int8_tensorrt import to_int8_tensorrt
from export.onnx_file import save_model
from export.parity import GATES, compare, run_all
from export.reference import Drawn, Reference
from export.settings import ExportSettings


def save_int8(
    graph: onnx.ModelProto,
    facts: OnnxMetadata,
    path: Path,
    settings: ExportSettings,
    drawn: Drawn,
    *,
    tell: Callable[[str], None],
) -> list[str]:
    """Calibrates, quantises, and writes the file that keeps to its gate on the images of the calibration.

    Args:
        graph: in float32.
        facts: of the file, but for its precision and quantisation.
        path: of the file, in a folder that nobody reads yet.
        settings: form of int8 and way of calibration.
        drawn: images for the calibration.
        tell: called with a line about what goes on.

    Returns:
        Names of the convolutions that stayed in float32.

    Raises:
        ExportError: no graph with a convolution in int8 keeps to the gate.
    """
    inputs, measure = _in_float32(graph, facts, path.with_suffix(".float32"), drawn)
    facts = facts.model_copy(update={"precision": "int8"})

    def acceptable(candidate: onnx.ModelProto) -> bool:
        save_model(candidate, facts, path)
        return compare(measure, run_all(OnnxBackend(path), drawn.views), gate=GATES["int8"]).passed

    tell(f"int8: calibration ({settings.calibration}) on {len(drawn.views)} images")
    ranges = calibrate(graph, inputs, method=settings.calibration, percentile=settings.percentile)
    quantise, activations = {"cpu": (to_int8, "uint8"), "tensorrt": (to_int8_tensorrt, "int8")}[
        settings.target
    ]
    quantised, kept = quantise_within(
        graph, ranges, inputs, acceptable=acceptable, tell=tell, quantise=quantise
    )
    quantisation = {
        "target": settings.target,
        "scheme": f"QDQ, activations {activations}, weights int8 with a scale for each channel",
        "calibration": settings.calibration,
        "percentile": settings.percentile if settings.calibration == "percentile" else None,
        **drawn.facts,
        "float32_convolutions": kept,
    }
    save_model(quantised, facts.model_copy(update={"quantisation": quantisation}), path)
    return kept


def _in_float32(
    graph: onnx.ModelProto, facts: OnnxMetadata, path: Path, drawn: Drawn
) -> tuple[np.ndarray, Reference]:
    """What the graph takes for the images, and what it says of them: the measure of int8."""
    save_model(graph, facts.model_copy(update={"precision": "fp32"}), path)
    runner = OnnxBackend(path)
    path.unlink()
    measure = Reference(
        images=drawn.views,
        labels=drawn.labels,
        real=np.ones(len(drawn.views), bool),
        outputs=run_all(runner, drawn.views),
        weights_sha256=facts.weights_sha256,
        view=runner.input_view,
        facts={},
    )
    return runner.metadata.preprocessing.apply(drawn.views), measure
