"""The options of `swav-tf export`, as settings of the ONNX files and of the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.classifier_options import best_option
from cli.options import (
    KINDS,
    NEW_FILE,
    count_option,
    names,
    option_group,
    option_names,
    seed_option,
)

if TYPE_CHECKING:
    from export.settings import EngineSettings, ExportSettings

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "dynamic":
        return value
    if not value.isdecimal() or int(value) < 8:
        raise click.BadParameter(f"must be a number of pixels >= 8, or dynamic. Received: {value}")
    return int(value)


def _batches(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int, int] | None:
    if value is None:
        return None
    words = value.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise click.BadParameter(
            f"must be three numbers of images >= 1, such as 1,8,32: minimum, usual, maximum. Received: {value}"
        )
    smallest, usual, largest = map(int, words)
    return smallest, usual, largest


# Their parameters have the names of fields of ExportSettings, but for --size.
GRAPH = (
    click.option("--precision", "precisions", callback=names, metavar="NAME,...", default="fp32",
                 help="Precision of the backbone: fp32, fp16, int8; one file for each."),
    click.option("--target", type=click.Choice(["cpu", "tensorrt"]),
                 show_default="tensorrt with --to tensorrt, else cpu",
                 help="Where the int8 file will run; the graphs differ."),
    click.option("--input", "graph_input", type=click.Choice(["uint8", "float32"]), default="uint8",
                 help="Input of the graph: bytes (n, size, size, 3), or normalized float32 (n, 3, size, size)."),
    click.option("--outputs", callback=names, metavar="NAME,...",
                 show_default="features, and logits if the model has them",
                 help="features, projections, scores (cosines with the prototypes), logits (of a probe or fine-tuned "
                 "model)."),
    click.option("--size", callback=_size, metavar="N", show_default="as in the recipe's evaluation view",
                 help="Side of the images in pixels, or `dynamic` for any size."),
    count_option("--step", least=0, show_default="the newest", help="Checkpoint to export."),
    best_option,
    click.option("--calibration", "data", metavar="DATA", show_default="the training images",
                 help="Images for the comparison with Keras and the calibration of int8."),
    click.option("--kind", type=click.Choice(KINDS), show_default="as the training images",
                 help="Kind of data in DATA."),
    click.option("--split", metavar="NAME", show_default="the training split",
                 help="Split of digits or a TFDS data set."),
    count_option("--calibration-images", least=2, default=256, help="Number of images for the calibration of int8."),
    count_option("--reference-images", least=2, default=512,
                 help="Number of other images for the comparison; they are kept in reference.npz."),
    seed_option("the choice of images"),
)  # fmt: skip
GRAPH_NAMES = option_names(*GRAPH)


def export_settings(graph: dict[str, Any], kinds: tuple[str, ...]) -> ExportSettings:
    """Return the settings of the ONNX files; `kinds` are those of --to."""
    from export.settings import ExportSettings

    given = {name: value for name, value in graph.items() if value is not None and name != "size"}
    if given.get("best") and "step" in given:
        raise click.UsageError("--best and --step both select a checkpoint: use one of them.")
    given.setdefault("target", "tensorrt" if "tensorrt" in kinds else "cpu")
    size = graph["size"]
    settings = ExportSettings(
        size=size if isinstance(size, int) else None, dynamic_size=size == "dynamic", **given
    )
    if "tensorrt" in kinds and "int8" in settings.precisions and settings.target != "tensorrt":
        raise click.UsageError("--to tensorrt needs int8 for TensorRT: omit --target.")
    return settings


ENGINE = (
    click.option("--batch", callback=_batches, metavar="MIN,OPT,MAX", show_default="1,8,32",
                 help="Engine: smallest, usual and largest batch."),
    click.option("--version-compatible", is_flag=True, default=None,
                 help="Engine: also runs on later TensorRT releases of the same major version."),
    click.option("--hardware-compatible", is_flag=True, default=None,
                 help="Engine: runs on every GPU from Ampere on."),
    click.option("--timing-cache", type=NEW_FILE, metavar="FILE",
                 help="Engine: kernel timings to read and extend; they speed up the next build."),
    click.option("--tensorrt", type=click.Choice(list(MODULES)),
                 show_default="TensorRT, or TensorRT-RTX if only that is installed",
                 help="Engine: build with TensorRT or TensorRT-RTX."),
)  # fmt: skip


def engine_settings(engine: dict[str, Any]) -> EngineSettings:
    """Return the settings of the engines."""
    from evaluate.backends.engine_file import Batches, BuilderOptions
    from export.settings import PROFILE, EngineSettings

    given = {name: value for name, value in engine.items() if value is not None}
    return EngineSettings(
        profile=Batches(**dict(zip(("min", "opt", "max"), given["batch"], strict=True)))
        if "batch" in given
        else PROFILE,
        options=BuilderOptions(
            **{name: given[name] for name in BuilderOptions.model_fields if name in given}
        ),
        timing_cache=given.get("timing_cache"),
        module_name=MODULES[given["tensorrt"]] if "tensorrt" in given else None,  # type: ignore[arg-type]
    )


graph_options = option_group("graph", dict, *GRAPH)
engine_options = option_group("engine", dict, *ENGINE)
