"""What an export is asked for. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from evaluate.backends.onnx_metadata import Input, Precision
from export.int8 import Method, Target
from swav_tf.plumbing.errors import UsageError

OUTPUTS: Final = ("features", "projections", "scores", "logits")
PRECISIONS: Final = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ExportSettings:
    """What is asked for.

    Attributes:
        precisions: of the files to write.
        outputs: of OUTPUTS, in order, `features` among them; empty: `features`, and `logits` of a classifier.
        graph_input: uint8 (batch, size, size, 3), or normalised float32 (batch, 3, size, size).
        size: side of the images, pixels; None: the recipe's evaluation view.
        dynamic_size: let the graph take images of any size; it is compared at `size`.
        step: of the checkpoint; None: the newest.
        data, kind, split: images to compare with and to calibrate on; None: the training images.
        reference_images: that are compared.
        calibration_images: that int8 is calibrated on; others.
        target: of int8: where it will run; each wants a graph of its own.
        calibration: how.
        percentile: of the activations in the range, percent; with calibration `percentile` only.
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
        """Refuses what does not fit together.

        Raises:
            UsageError: it does not.
        """
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        lacks_features = bool(self.outputs) and "features" not in self.outputs
        if unknown or lacks_features or len(set(self.outputs)) < len(self.outputs):
            raise UsageError(
                f"--outputs must be of {', '.join(OUTPUTS)}, each once and features among them. "
                f"Received: {', '.join(self.outputs)}."
            )
        wrong = [precision for precision in self.precisions if precision not in PRECISIONS]
        if wrong or not self.precisions:
            raise UsageError(
                f"--precision must be of {', '.join(PRECISIONS)}. Received: {', '.join(wrong) or 'nothing'}."
            )
