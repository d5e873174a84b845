"""The options of commands that take a model: a run folder, an exported file, or an ONNX file of other tools."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cli.options import Option, option_group
from cli.progress import load_tensorflow_quietly

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.backends.foreign import Contract


provider_option = click.option(
    "--provider",
    type=click.Choice(["cpu", "openvino", "cuda", "tensorrt"]),
    show_default="cpu",
    help="Where to run an ONNX file; there is no fallback. cpu, cuda and tensorrt use ONNX Runtime. openvino uses "
    "OpenVINO on the CPU, in bfloat16 if the CPU supports it.",
)


def _contract(
    view: tuple[int, int] | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    output_name: str | None,
) -> Contract | None:
    """Return preprocessing and output of a third-party ONNX file; None without these options."""
    if (view, mean, std, output_name) == (None, None, None, None):
        return None
    from evaluate.backends.foreign import USUAL, Contract

    if view is None:
        raise click.UsageError(f"--mean, --std and --output-name require --view. The usual ones are {USUAL}.")
    return Contract(*view, mean, std, output_name)


def _sides(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+),(\d+)", value or "")
    if value is not None and (match is None or not 0 < int(match[2]) <= int(match[1])):
        raise click.BadParameter(
            f"must be RESIZE,CROP with CROP <= RESIZE, such as 256,224. Received: {value}"
        )
    return None if match is None else (int(match[1]), int(match[2]))


def _channels(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    least = 0 if option.name == "std" else -math.inf
    try:
        red, green, blue = map(float, value.split(","))
        valid = all(least < number < math.inf for number in (red, green, blue))
    except ValueError:
        valid = False
    if not valid:
        what = "numbers > 0" if option.name == "std" else "numbers"
        raise click.BadParameter(
            f"must be three {what}, for red, green and blue, such as 0.485,0.456,0.406. Received: {value}"
        )
    return red, green, blue


_contract_options = (
    click.option(
        "--view",
        callback=_sides,
        metavar="RESIZE,CROP",
        help="Third-party ONNX files: resize the short side, then crop the center, in pixels.",
    ),
    click.option(
        "--mean",
        callback=_channels,
        metavar="R,G,B",
        help="Third-party ONNX files: mean of images in [0, 1].",
    ),
    click.option(
        "--std",
        callback=_channels,
        metavar="R,G,B",
        help="Third-party ONNX files: standard deviation; the graph gets (image / 255 - mean) / std.",
    ),
    click.option(
        "--output-name",
        metavar="NAME",
        show_default="the only one",
        help="Third-party ONNX files: output with the features.",
    ),
)
contract_options = option_group("contract", _contract, *_contract_options)


@dataclass(frozen=True)
class ModelChoice:
    """A model that computes features."""

    model: str | None
    provider: str | None
    contract: Contract | None

    def open(self, *, threads: int = 0) -> Backend:
        """Open the model; TensorFlow is loaded, quietly, for a run folder only.

        `threads` compute one batch of an ONNX file on a CPU, 0 for one per core.
        """
        if self.model is None:
            raise click.MissingParameter(param_type="option", param_hint="'--model'")
        from evaluate import backends

        if backends.is_run_folder(self.model):
            load_tensorflow_quietly()
        return backends.open_model(
            self.model,
            provider=self.provider,
            threads=threads if self.model.endswith(".onnx") else 0,
            contract=self.contract,
        )


def _model_options(*, required: bool = True, foreign: bool = True) -> Option:
    """Return the options of a model; only with `foreign` of third-party files too, which have no scores."""

    def build(model: str | None, provider: str | None, **contract: Any) -> ModelChoice:
        return ModelChoice(model, provider, _contract(**contract) if contract else None)

    own = "Folder of a pretraining run (its newest checkpoint is used), or a file written by `swav-tf export`"
    third_party = ", or a third-party ONNX file with --view, --mean and --std." if foreign else "."
    option = click.option("--model", required=required, metavar="MODEL", help=own + third_party)
    return option_group("model", build, option, provider_option, *(_contract_options if foreign else ()))


model_options = _model_options()
optional_model_options = _model_options(required=False)
own_model_options = _model_options(foreign=False)
