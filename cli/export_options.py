"""The options of `swav-tf export`, as settings of the ONNX files and of the engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import KINDS, names, option_group, option_names, seed_option

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
    click.option("--precision", "precisions", callback=names, metavar="NAME,...", default="fp32", show_default=True,
                 help="fp32, fp16, int8: arithmetic of the backbone; one file for each."),
    click.option("--target", type=click.Choice(["cpu", "tensorrt"]),
                 help="Where int8 will run; the graphs differ.  [default: tensorrt with --to tensorrt, else cpu]"),
    click.option("--input", "graph_input", type=click.Choice(["uint8", "float32"]), default="uint8", show_default=True,
                 help="Input of the graph: bytes (n, size, size, 3), or normalized float32 (n, 3, size, size)."),
    click.option("--outputs", callback=names, metavar="NAME,...",
                 help="features, projections, scores (cosines with the prototypes), logits (of a probe or fine-tuned "
                 "model).  [default: features, and logits if the model has them]"),
    click.option("--size", callback=_size, metavar="N",
                 help="Side of the images, pixels, or `dynamic` for any.  [default: the recipe's evaluation view]"),
    click.option("--step", type=click.IntRange(min=0), metavar="N",
                 help="Checkpoint to export.  [default: the newest]"),
    click.option("--calibration", "data", metavar="DATA",
                 help="Images to compare with and to calibrate int8 on.  [default: the training images]"),
    click.option("--kind", type=click.Choice(KINDS), help="How DATA is read.  [default: as the training images]"),
    click.option("--split", metavar="NAME", help="Split of digits or a TFDS data set.  [default: the training split]"),
    click.option("--calibration-images", type=click.IntRange(min=2), metavar="N", default=256, show_default=True,
                 help="Images that int8 is calibrated on."),
    click.option("--calibration-method", "calibration", type=click.Choice(["minmax", "entropy", "percentile"]),
                 default="minmax", show_default=True, help="How the range of an activation follows from its values."),
    click.option("--percentile", type=click.FloatRange(50, 100), metavar="X",
                 help="With --calibration-method percentile: percent of the values in the range.  [default: 99.99]"),
    click.option("--reference-images", type=click.IntRange(min=2), metavar="N", default=512, show_default=True,
                 help="Further images, for the comparison; kept in reference.npz."),
    seed_option("Seed of the draw of images."),
)  # fmt: skip
GRAPH_NAMES = option_names(*GRAPH)


def export_settings(graph: dict[str, Any], kinds: tuple[str, ...]) -> ExportSettings:
    """Return the settings of the ONNX files; `kinds` are those of --to."""
    from export.settings import ExportSettings

    given = {name: value for name, value in graph.items() if value is not None and name != "size"}
    if "percentile" in given and given["calibration"] != "percentile":
        raise click.UsageError("--percentile requires --calibration-method percentile.")
    given.setdefault("target", "tensorrt" if "tensorrt" in kinds else "cpu")
    size = graph["size"]
    settings = ExportSettings(
        size=size if isinstance(size, int) else None, dynamic_size=size == "dynamic", **given
    )
    if "tensorrt" in kinds and "int8" in settings.precisions and settings.target != "tensorrt":
        raise click.UsageError("--to tensorrt needs int8 for TensorRT: omit --target.")
    return settings


ENGINE = (
    click.option("--batch", callback=_batches, metavar="MIN,OPT,MAX",
                 help="Engine: smallest, usual and largest number of images at once.  [default: 1,8,32]"),
    click.option("--workspace-gib", type=click.FloatRange(0, min_open=True), metavar="GIB",
                 help="Engine: largest scratch memory of a layer.  [default: all available memory]"),
    click.option("--builder-level", type=click.IntRange(0, 5), metavar="0..5",
                 help="Engine: effort to find fast kernels.  [default: TensorRT's]"),
    click.option("--version-compatible", is_flag=True, default=None,
                 help="Engine: later TensorRT of the same major version can run it."),
    click.option("--hardware-compatible", is_flag=True, default=None,
                 help="Engine: every GPU from Ampere on can run it."),
    click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Engine: kernel timings, read and extended; they speed up the next build."),
    click.option("--tensorrt", type=click.Choice(list(MODULES)),
                 help="Engine: which TensorRT.  [default: TensorRT, or -RTX if only that is installed]"),
    click.option("--engine-cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Engine: folder of engines to reuse.  [default: ~/.cache/swav-tf/engines]"),
)  # fmt: skip


def engine_settings(engine: dict[str, Any]) -> EngineSettings:
    """Return the settings of the engines."""
    from evaluate.backends.engine_file import Batches, BuilderOptions
    from export.settings import PROFILE, EngineSettings, default_cache

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
        cache=given.get("engine_cache") or default_cache(),
    )


graph_options = option_group("graph", dict, *GRAPH)
engine_options = option_group("engine", dict, *ENGINE)
