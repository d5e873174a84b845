"""The settings of exports and of engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from evaluate.backends.engine_file import Batches, BuilderOptions
from evaluate.backends.onnx_metadata import Input, Precision
from evaluate.backends.tensorrt_module import ModuleName
from swav_tf.plumbing.errors import UsageError

Target = Literal["cpu", "tensorrt"]
OUTPUTS: Final = ("features", "projections", "scores", "logits")
PRECISIONS: Final = get_args(Precision)
PROFILE: Final = Batches(min=1, opt=8, max=32)


@dataclass(frozen=True)
class ExportSettings:
    """What to export, and on which images to check and calibrate it.

    Raises:
        UsageError: precisions or outputs are unknown, repeated or incomplete.
    """

    precisions: tuple[Precision, ...] = ("fp32",)  # one file for each
    # In order, with `features`; empty: `features`, and `logits` of a classifier.
    outputs: tuple[str, ...] = ()
    graph_input: Input = "uint8"  # (batch, size, size, 3), or normalized float32 (batch, 3, size, size)
    size: int | None = None  # side of the images, pixels; None: the recipe's evaluation view
    dynamic_size: bool = False  # let the graph take images of any size; parity is measured at `size`
    step: int | None = None  # of the checkpoint; None: the newest
    best: bool = False  # the checkpoint of the best validated epoch instead
    # Images to compare and to calibrate on; None: the training images.
    data: str | None = None
    kind: str | None = None
    split: str | None = None
    reference_images: int = 512
    calibration_images: int = 256  # different ones, for int8
    target: Target = "cpu"  # where int8 will run; the graphs differ
    seed: int = 0  # of the draw of images

    def __post_init__(self) -> None:
        known = set(self.outputs) <= set(OUTPUTS) and len(set(self.outputs)) == len(self.outputs)
        if not known or (self.outputs and "features" not in self.outputs):
            raise UsageError(
                f"--outputs must be among {', '.join(OUTPUTS)}, each once and including features. "
                f"Received: {', '.join(self.outputs)}."
            )
        wrong = [precision for precision in self.precisions if precision not in PRECISIONS]
        if wrong or not self.precisions:
            raise UsageError(
                f"--precision must be among {', '.join(PRECISIONS)}. Received: {', '.join(wrong) or 'nothing'}."
            )


@dataclass(frozen=True)
class EngineSettings:
    """How to build engines."""

    profile: Batches = PROFILE  # images at once
    options: BuilderOptions = field(default_factory=BuilderOptions)
    timing_cache: Path | None = None  # file with timings of kernels, read and extended
    module_name: ModuleName | None = None  # None: TensorRT-RTX if it is the only one installed

    def __post_init__(self) -> None:
        profile = self.profile
        if not profile.min <= profile.opt <= profile.max:
            raise UsageError(
                "--batch must be the smallest, the usual and the largest number of images, in this order. Received: "
                f"{profile.min},{profile.opt},{profile.max}."
            )
