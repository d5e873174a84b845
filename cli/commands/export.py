"""`swav-tf export`: a run as ONNX files for machines without TensorFlow, with the proof beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.engine_options import (
    NAMES,
    engine_as_dict,
    engine_line,
    engine_options,
    engine_settings,
    refuse_without_tensorrt,
)
from cli.options import (
    json_option,
    kind_option,
    output_option,
    print_json,
    quiet_option,
    seed_option,
    split_option,
)
from swav_tf.plumbing.log import show_log

if TYPE_CHECKING:
    from export.engine import ExportedEngine
    from export.run import Exported


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names from a text with commas."""
    if value is None:
        return ()
    return tuple(word.strip() for word in value.split(","))


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number of pixels, or `dynamic`."""
    if value is None or value == "dynamic":
        return value
    if not value.isdecimal() or int(value) < 8:
        raise click.BadParameter(f"must be a number of pixels >= 8, or dynamic. Received: {value}")
    return int(value)


@click.command(short_help="Write ONNX files and engines that compute what Keras does.")
@click.argument("run", type=click.Path(path_type=Path))
@output_option("Folder to write into; files of the same names are replaced.", metavar="DIR", required=True)
@click.option(
    "--to",
    "kinds",
    callback=_names,
    metavar="NAME,...",
    default="onnx",
    show_default=True,
    help="onnx, tensorrt: kinds of files. The ONNX file of an engine is always written.",
)
@click.option(
    "--precision",
    "precisions",
    callback=_names,
    metavar="NAME,...",
    default="fp32",
    show_default=True,
    help="fp32, fp16, int8: of the backbone's arithmetic; a file for each.",
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "tensorrt"]),
    help="Where int8 will run: the graphs differ.  [default: tensorrt with --to tensorrt, else cpu]",
)
@click.option(
    "--input",
    "graph_input",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    show_default=True,
    help="What the graph takes: bytes (n, size, size, 3), or normalised float32 (n, 3, size, size).",
)
@click.option(
    "--outputs",
    callback=_names,
    metavar="NAME,...",
    help="features, projections, scores (cosines with the prototypes), logits (of a probe or fine-tuned model).  "
    "[default: features, and logits where there are any]",
)
@click.option(
    "--size",
    callback=_size,
    metavar="N",
    help="Side of the images, pixels, or `dynamic` for any.  [default: the recipe's evaluation view]",
)
@click.option(
    "--step", type=click.IntRange(min=0), metavar="N", help="Checkpoint to export.  [default: the newest]"
)
@click.option(
    "--calibration",
    "data",
    metavar="DATA",
    help="Images to compare with and to calibrate int8 on.  [default: the training images]",
)
@kind_option
@split_option
@click.option(
    "--calibration-images", type=click.IntRange(min=2), metavar="N", default=256, show_default=True,
    help="Images that int8 is calibrated on.",
)  # fmt: skip
@click.option(
    "--calibration-method",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    show_default=True,
    help="How the range of an activation is chosen from its values.",
)
@click.option(
    "--percentile", type=click.FloatRange(50, 100), metavar="X",
    help="With --calibration-method percentile: percent of the values inside the range.  [default: 99.99]",
)  # fmt: skip
@click.option(
    "--reference-images", type=click.IntRange(min=2), metavar="N", default=512, show_default=True,
    help="Further images, for the comparison; kept in reference.npz.",
)  # fmt: skip
@seed_option("Seed of the draw of images.")
@engine_options
@click.option(
    "--triton",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write a model repository for NVIDIA Triton: a folder for each file, with config.pbtxt.",
)
@quiet_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    run: Path,
    output: Path,
    kinds: tuple[str, ...],
    precisions: tuple[str, ...],
    target: str | None,
    graph_input: str,
    outputs: tuple[str, ...],
    size: int | str | None,
    step: int | None,
    data: str | None,
    kind: str | None,
    split: str | None,
    calibration_images: int,
    calibration_method: str,
    percentile: float | None,
    reference_images: int,
    seed: int,
    engine: dict[str, Any],
    triton: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the newest checkpoint of RUN as ONNX files that need no TensorFlow.

    RUN is the folder of `swav-tf pretrain`, or that of a probe or fine-tuning: its files give logits too.
    With --to tensorrt it may also be an exported ONNX file, on a GPU server without TensorFlow.

    Each file is checked, run by ONNX Runtime and compared with Keras in float32, on real images
    and on random pixels; one that differs too much is an error and is not written. Beside them:
    reference.npz, with which `swav-tf verify` repeats the proof elsewhere, and parity.json.

    \b
    Examples:
      swav-tf export runs/demo --output exported
      swav-tf export runs/first --precision fp32,int8 --calibration photos/ --kind images --output exported
      swav-tf export runs/first --to onnx,tensorrt --precision fp32,fp16 --batch 1,64,256 --output exported
      swav-tf export exported/model-fp16.onnx --to tensorrt --output exported
      swav-tf features photos/ --kind images --model exported/model-fp32.onnx --output photos.npz
    """
    if percentile is not None and calibration_method != "percentile":
        raise click.UsageError("--percentile belongs to --calibration-method percentile")
    if wrong := [kind for kind in kinds if kind not in ("onnx", "tensorrt")]:
        raise click.UsageError(f"--to must be of onnx, tensorrt. Received: {', '.join(wrong)}")
    if not quiet and not as_json:
        show_log()
    engines: list[ExportedEngine] = []
    if "tensorrt" not in kinds:
        refuse_without_tensorrt(engine)
    elif run.suffix == ".onnx":
        _refuse_options_of_a_run(context)
        from export.engine import export_engines

        engines = export_engines([run], output, engine_settings(engine))
        served = _write_triton(triton, [run, *(file.path for file in engines)])
        _show(output, [], engines, served, as_json)
        return
    from export.run import export_run
    from export.settings import ExportSettings

    settings = ExportSettings(
        precisions=precisions,  # type: ignore[arg-type]  # checked next
        outputs=outputs,
        graph_input=graph_input,  # type: ignore[arg-type]  # one of the choices
        size=size if isinstance(size, int) else None,
        dynamic_size=size == "dynamic",
        step=step,
        data=data,
        kind=kind,
        split=split,
        reference_images=reference_images,
        calibration_images=calibration_images,
        calibration=calibration_method,  # type: ignore[arg-type]  # one of the choices
        percentile=99.99 if percentile is None else percentile,
        seed=seed,
        target=target or ("tensorrt" if "tensorrt" in kinds else "cpu"),  # type: ignore[arg-type]  # a choice
    )
    settings.check()  # before TensorFlow loads
    if "tensorrt" in kinds:
        from export.engine import builder_here

        if "int8" in precisions and settings.target != "tensorrt":
            raise click.UsageError("--to tensorrt takes int8 in its own form: leave out --target")
        builder_here(engine_settings(engine).module_name)  # what is missing is told now, not after the export
    from cli.quiet import load_tensorflow_quietly

    load_tensorflow_quietly()
    exported = export_run(run, output, settings)
    if "tensorrt" in kinds:
        from export.engine import export_engines

        engines = export_engines([file.path for file in exported], output, engine_settings(engine))
    served = _write_triton(triton, [*(file.path for file in exported), *(file.path for file in engines)])
    _show(output, exported, engines, served, as_json)


def _write_triton(folder: Path | None, files: list[Path]) -> list[Path]:
    """The models' folders, if a repository is asked for."""
    if folder is None:
        return []
    from export.triton import write_repository

    return write_repository(folder, files)


def _refuse_options_of_a_run(context: click.Context) -> None:
    """Options that an ONNX file has answered already.

    Raises:
        click.UsageError: there are some.
    """
    of_engines = {"run", "output", "kinds", "triton", "quiet", "as_json", *NAMES}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in of_engines
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: for a run; {context.params['run']} is exported already")


def _show(
    output: Path,
    exported: list[Exported],
    engines: list[ExportedEngine],
    served: list[Path],
    as_json: bool,
) -> None:
    """What was written, for a person or as JSON."""
    if as_json:
        print_json(
            {
                "output": str(output),
                "files": {
                    file.path.name: {
                        "precision": file.precision,
                        "bytes": file.bytes,
                        "float32_convolutions": list(file.float32_convolutions),
                        **file.parity.as_dict(),
                    }
                    for file in exported
                },
                "engines": {file.path.name: engine_as_dict(file) for file in engines},
                "triton": [str(path) for path in served],
            }
        )
        return
    from cli.tables.parity import print_parity

    compared = {file.path.name: file.parity for file in engines if file.parity is not None}
    print_parity({file.path.name: file.parity for file in exported} | compared)
    for file in exported:
        kept = len(file.float32_convolutions)
        click.echo(
            f"{file.path}: {file.bytes / 2**20:.1f} MiB"
            + (f", {kept} convolutions in float32 to meet the gate" if kept else "")
        )
    for built in engines:
        click.echo(engine_line(built))
    for path in served:
        click.echo(f"{path}: for tritonserver --model-repository {path.parent}")
