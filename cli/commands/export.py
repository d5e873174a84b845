"""`swav-tf export`: write a run as ONNX files and TensorRT engines, verified against Keras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    KINDS,
    NEW_FILE,
    NEW_FOLDER,
    PATH,
    Report,
    count_option,
    names,
    option_group,
    output_option,
    refuse_given,
    report_options,
    seed_option,
)
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import best_option
from cli.tables import parity_lines

if TYPE_CHECKING:
    from evaluate.backends.engine_file import Batches
    from export.engine import Engine
    from export.run import Exported
    from export.settings import EngineSettings, ExportSettings

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "dynamic":
        return value
    if not value.isdecimal() or int(value) < 8:
        raise click.BadParameter(f"must be a number of pixels >= 8, or dynamic. Received: {value}")
    return int(value)


def _batches(context: click.Context, option: click.Parameter, value: str | None) -> Batches | None:
    if value is None:
        return None
    from evaluate.backends.engine_file import Batches

    words = value.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise click.BadParameter(
            f"must be three numbers of images >= 1, such as 1,8,32: minimum, usual, maximum. Received: {value}"
        )
    return Batches(**dict(zip(("min", "opt", "max"), map(int, words), strict=True)))


# Their parameters have the names of fields of ExportSettings, but for --size.
graph_options = option_group(
    "graph",
    dict,
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
engine_options = option_group(
    "engine",
    dict,
    click.option("--batch", "profile", callback=_batches, metavar="MIN,OPT,MAX", show_default="1,8,32",
                 help="Engine: smallest, usual and largest batch."),
    click.option("--version-compatible", is_flag=True, default=None,
                 help="Engine: also runs on later TensorRT releases of the same major version."),
    click.option("--hardware-compatible", is_flag=True, default=None,
                 help="Engine: runs on every GPU from Ampere on."),
    click.option("--timing-cache", type=NEW_FILE, metavar="FILE",
                 help="Engine: kernel timings to read and extend; they speed up the next build."),
    click.option("--tensorrt", "module_name", type=click.Choice(list(MODULES)),
                 callback=lambda context, option, value: MODULES.get(value),
                 show_default="TensorRT, or TensorRT-RTX if only that is installed",
                 help="Engine: build with TensorRT or TensorRT-RTX."),
)  # fmt: skip


@click.command()
@click.argument("run", type=PATH)
@output_option(
    "Folder to write to; files of the same name are replaced.", type=NEW_FOLDER, metavar="DIR", required=True
)
@click.option(
    "--to", "kinds", callback=names, metavar="NAME,...", default="onnx",
    help="Formats to write: onnx, tensorrt. An engine's ONNX file is always written, too.",
)  # fmt: skip
@graph_options
@engine_options
@click.option(
    "--triton", type=NEW_FOLDER, metavar="DIR",
    help="Also write a model repository for NVIDIA Triton, with a folder and a config.pbtxt for each file.",
)  # fmt: skip
@report_options
def command(
    run: Path,
    output: Path,
    kinds: tuple[str, ...],
    graph: dict[str, Any],
    engine: dict[str, Any],
    triton: Path | None,
    report: Report,
) -> None:
    """Write the newest checkpoint of RUN as ONNX files that need no TensorFlow.

    RUN is the folder of a pretraining, probe or fine-tuning run. Exports of probes and fine-tuned models also return
    logits. With --to tensorrt, RUN may be an exported ONNX file: a GPU server then needs no TensorFlow.

    Each file is checked, run by ONNX Runtime and compared with Keras in float32, on real images and on random pixels.
    If a file differs too much, the command fails and the file is not written. The folder also receives parity.json
    and reference.npz, with which `swav-tf verify` repeats the comparison elsewhere.

    \b
    Examples:
      swav-tf export runs/demo --output exported
      swav-tf export runs/first --precision fp32,int8 --calibration photos/ --kind images --output exported
      swav-tf export runs/first --to onnx,tensorrt --precision fp32,fp16 --batch 1,64,256 --output exported
      swav-tf export exported/model-fp16.onnx --to tensorrt --output exported
      swav-tf features photos/ --kind images --model exported/model-fp32.onnx --output photos.npz
    """
    if unknown := [kind for kind in kinds if kind not in ("onnx", "tensorrt")]:
        raise click.UsageError(f"--to must be onnx, tensorrt or both. Received: {', '.join(unknown)}")
    if triton is not None and "tensorrt" in kinds:  # to build the engine takes minutes
        from export.engine import builder_here
        from export.triton import check_served

        settings = engine_settings(engine)
        check_served(
            builder_here(settings.module_name)[0].module_name, settings.profile, "the engine to build"
        )
    exported: list[Exported] = []
    if "tensorrt" in kinds and run.suffix == ".onnx":
        refuse_given(graph, f"cannot be applied to {run}, which is already exported")
        files = [run]
    else:
        exported = _export(run, output, kinds, graph, engine)
        files = [file.path for file in exported]
    engines: list[Engine] = []
    if "tensorrt" in kinds:
        from export.engine import export_engines

        engines = export_engines(files, output, engine_settings(engine))
    served: list[Path] = []
    if triton is not None:
        from export.triton import write_repository

        served = write_repository(triton, [*files, *(built.path for built in engines)])
    report.show(_document(output, exported, engines, served), _lines(exported, engines, served))


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
    if "int8" not in settings.precisions:
        refuse_given(("target", "calibration_images"), "applies to int8: add it to --precision.")
    if "tensorrt" in kinds and "int8" in settings.precisions and settings.target != "tensorrt":
        raise click.UsageError("--to tensorrt needs int8 for TensorRT: omit --target.")
    return settings


def engine_settings(engine: dict[str, Any]) -> EngineSettings:
    """Return the settings of the engines."""
    from evaluate.backends.engine_file import BuilderOptions
    from export.settings import EngineSettings

    given = {name: value for name, value in engine.items() if value is not None}
    options = {name: given.pop(name) for name in BuilderOptions.model_fields if name in given}
    return EngineSettings(options=BuilderOptions(**options), **given)


def _export(
    run: Path, output: Path, kinds: tuple[str, ...], graph: dict[str, Any], engine: dict[str, Any]
) -> list[Exported]:
    """Export the ONNX files; report what is missing for the engines before TensorFlow loads."""
    settings = export_settings(graph, kinds)
    if "tensorrt" in kinds:
        from export.engine import builder_here

        builder_here(engine_settings(engine).module_name)
    else:
        refuse_given(engine, "apply to engines: add --to tensorrt")
    load_tensorflow_quietly()
    from export.run import export_run

    return export_run(run, output, settings)


def _document(
    output: Path, exported: list[Exported], engines: list[Engine], served: list[Path]
) -> dict[str, Any]:
    return {
        "output": str(output),
        **({"step": exported[0].step, "epoch": exported[0].epoch} if exported else {}),
        "files": {
            file.path.name: {
                "precision": file.precision,
                "bytes": file.bytes,
                "float32_convolutions": list(file.float32_convolutions),
                **file.parity.as_dict(),
            }
            for file in exported
        },
        "engines": {
            built.path.name: {
                "precision": built.facts.metadata(built.path).precision,
                "bytes": built.bytes,
                "builder": built.facts.builder,
                "gpu": None if built.facts.gpu is None else built.facts.gpu.model_dump(),
                "profile": built.facts.profile.model_dump(),
                "proof": built.facts.proof.model_dump(),
                "parity": None if built.parity is None else built.parity.as_dict(),
                "not_compared": built.not_compared or None,
            }
            for built in engines
        },
        "triton": [str(path) for path in served],
    }


def _lines(exported: list[Exported], engines: list[Engine], served: list[Path]) -> Iterator[str]:
    compared = {built.path.name: built.parity for built in engines if built.parity is not None}
    yield from parity_lines({file.path.name: file.parity for file in exported} | compared)
    if exported:
        step, epoch = exported[0].step, exported[0].epoch
        yield f"Weights of {f'the {epoch}, ' if epoch.endswith(')') else ''}step {step:,}."
    for file in exported:
        kept = len(file.float32_convolutions)
        note = f", {kept} convolutions in float32 to meet the gate" if kept else ""
        yield f"{file.path}: {file.bytes / 2**20:.1f} MiB{note}"
    for built in engines:
        proof = built.facts.proof
        counts = ", ".join(f"{count} convolutions in {name}" for name, count in proof.convolutions.items())
        note = f"; {built.not_compared}" if built.not_compared else ""
        size = f"{built.bytes / 2**20:.1f} MiB"
        yield f"{built.path}: {size} by {built.facts.builder}, {counts} by {proof.source}{note}"
    for path in served:
        yield f"{path}: for tritonserver --model-repository {path.parent}"
