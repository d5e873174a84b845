"""The settings of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from evaluate.backends.onnx_metadata import Input, Precision
from swav_tf.plumbing.errors import UsageError

Target = Literal["cpu", "tensorrt"]
Method = Literal["minmax", "entropy", "percentile"]
OUTPUTS: Final = ("features", "projections", "scores", "logits")
PRECISIONS: Final = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ExportSettings:
    """What to export, and on which images to check and calibrate it.

    Attributes:
        precisions: one file is written for each.
        outputs: of OUTPUTS, in order, with `features`; empty: `features`, and `logits` of a classifier.
        graph_input: uint8 (batch, size, size, 3), or normalized float32 (batch, 3, size, size).
        size: side of the images, pixels; None: the recipe's evaluation view.
        dynamic_size: let the graph take images of any size; parity is measured at `size`.
        step: of the checkpoint; None: the newest.
        data, kind, split: images to compare and to calibrate on; None: the training images.
        reference_images: number of images to compare.
        calibration_images: number of different images to calibrate int8 on.
        target: where int8 will run; the graphs differ.
        calibration: how int8 finds the ranges of activations.
        percentile: share of the activations inside the range, percent; for calibration `percentile`.
        seed: of the draw of images.
    """

    precisions: tuple[Precision, ...] = ("fp32",)
    outputs: tuple[str, ...] = ()
    graph_input: Input = "uint8"
    size: int | None = None
    dynamic_size: bool = False
    step: int | None = None
    data: str | None = None
    kind: str | None = None
    split: str | None = None
    reference_images: int = 512
    calibration_images: int = 256
    target: Target = "cpu"
    calibration: Method = "minmax"
    percentile: float = 99.99
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError if precisions or outputs are unknown, repeated or incomplete."""
        known = set(self.outputs) <= set(OUTPUTS) and len(set(self.outputs)) == len(self.outputs)
        if not known or (self.outputs and "features" not in self.outputs):
            raise UsageError(
                f"--outputs must be of {', '.join(OUTPUTS)}, each once and features among them. "
                f"Received: {', '.join(self.outputs)}."
            )
        wrong = [precision for precision in self.precisions if precision not in PRECISIONS]
        if wrong or not self.precisions:
            raise UsageError(
                f"--precision must be of {', '.join(PRECISIONS)}. Received: {', '.join(wrong) or 'nothing'}."
            )
