"""`swav-tf export`: write a run as ONNX files and TensorRT engines, verified against Keras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.export_options import GRAPH_NAMES, engine_options, engine_settings, export_settings, graph_options
from cli.options import NEW_FOLDER, PATH, Report, is_default, names, output_option, report_options
from cli.progress import load_tensorflow_quietly
from cli.tables import parity_lines

if TYPE_CHECKING:
    from export.engine import Engine
    from export.run import Exported


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

    RUN is the folder of a pretraining, probe or fine-tuning run; the latter two also give logits. With --to tensorrt,
    RUN may be an exported ONNX file: a GPU server then needs no TensorFlow.

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
    exported: list[Exported] = []
    if "tensorrt" in kinds and run.suffix == ".onnx":
        _refuse(GRAPH_NAMES, f"cannot be applied to {run}, which is already exported")
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


def _export(
    run: Path, output: Path, kinds: tuple[str, ...], graph: dict[str, Any], engine: dict[str, Any]
) -> list[Exported]:
    """Export the ONNX files; report what is missing for the engines before TensorFlow loads."""
    settings = export_settings(graph, kinds)
    if "tensorrt" in kinds:
        from export.engine import builder_here

        builder_here(engine_settings(engine).module_name)
    else:
        _refuse(tuple(engine), "apply to engines: add --to tensorrt")
    load_tensorflow_quietly()
    from export.run import export_run

    return export_run(run, output, settings)


def _refuse(parameters: tuple[str, ...], reason: str) -> None:
    """Raise UsageError if any of these parameters is on the command line."""
    given = [
        parameter.opts[0]
        for parameter in click.get_current_context().command.params
        if parameter.name in parameters and not is_default(parameter.name)
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: {reason}")


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
