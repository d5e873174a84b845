"""Export a run: files that were checked, run and compared with Keras; all of them or none."""

from __future__ import annotations

import gc
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from evaluate.backends.checksums import PARITY, Checksum, read_checksums
from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import OnnxMetadata, Precision, Preprocessing, dataset_name, public_data
from export import onnx_file
from export.card import write_card
from export.onnx_file import save_model, weight_bytes
from export.parity import GATES, Parity, compare, parity_text, run_all
from export.precision import save_int8, to_fp16
from export.reference import REFERENCE, Reference, Views, draw, reference_of, write_reference
from export.settings import ExportSettings
from export.staging import ExportError, filled_folder
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import version_of
from swav_tf.recipe.data import EvaluationView

if TYPE_CHECKING:
    from export.graph import TrainedModel

TOOLS: Final = ("swav-tf", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Exported:
    """One exported file."""

    path: Path
    precision: Precision
    bytes: int  # of the graph and its weights
    parity: Parity
    checksum: Checksum  # of the graph, which contains that of its weights
    step: int  # of the checkpoint
    epoch: str  # whose weights these are, in words; empty without validated epochs
    float32_convolutions: tuple[str, ...] = ()  # of int8, to meet its gate


@dataclass(frozen=True)
class Source:
    """What all files of an export are built from."""

    graph: onnx.ModelProto  # float32
    metadata: OnnxMetadata
    reference: Reference
    calibration: Views  # empty without int8


def export_run(run_dir: Path, output: Path, settings: ExportSettings) -> list[Exported]:
    """Write ONNX files, reference.npz, parity.json and a model card, README.md, into a folder.

    Args:
        run_dir: of a pretraining run, a probe or fine-tuning.
        output: the folder; files of the same names are replaced, except a README.md that a person wrote.
        settings: what to write.

    Raises:
        UsageError: the model lacks an output or checkpoint, or is too large for int8.
        DataError: too few readable images.
        ExportError: an operation does not exist in ONNX, a file misses its gate, or the disk is full.
        CheckpointError: the checkpoint is damaged.
    """
    source = _convert(run_dir, settings)
    gc.collect()  # Keras' model has reference cycles, and is as large as the graph
    checksums = _earlier_checksums(output)
    with filled_folder(output) as folder:
        write_reference(folder / REFERENCE, source.reference)
        exported = [_export_one(source, precision, folder, settings) for precision in settings.precisions]
        results = {file.path.name: (file.precision, file.parity) for file in exported}
        checksums |= {file.path.name: file.checksum for file in exported}
        text = parity_text(source.reference, results, checksums)
        (folder / PARITY).write_text(text, encoding="utf-8")
        files = {file.path.name: file.parity for file in exported}
        write_card(folder, output, source.metadata, tuple(source.reference.outputs), files)
    return [replace(file, path=output / file.path.name) for file in exported]


def _convert(run_dir: Path, settings: ExportSettings) -> Source:
    """Load the run in Keras, compute the reference and convert the graph."""
    from export.graph import build_graph, load_trained

    trained = load_trained(run_dir, step=settings.step, best=settings.best)
    outputs = _outputs(trained, settings.outputs)
    view = trained.recipe.data.evaluation
    if settings.size is not None:  # the same share of the image
        view = EvaluationView(resize=round(settings.size * view.resize / view.crop), crop=settings.size)
    compared, calibration = draw(trained.recipe.data, settings, view)
    reference = reference_of(trained, outputs, view, compared, settings.seed)
    log.info("converting the graph in float32")
    size = None if settings.dynamic_size else view.crop
    graph = build_graph(trained, outputs=outputs, size=size, graph_input=settings.graph_input)
    if "int8" in settings.precisions and weight_bytes(graph) > onnx_file.ONE_FILE_BYTES:
        raise UsageError(
            f"int8 is made from a float32 graph of {onnx_file.ONE_FILE_BYTES / 2**30:.2f} GiB at most. Received: "
            f"{weight_bytes(graph) / 2**30:.2f} GiB. Use --precision fp32,fp16."
        )
    return Source(graph, _metadata(trained, settings, outputs, view), reference, calibration)


def _outputs(trained: TrainedModel, requested: tuple[str, ...]) -> tuple[str, ...]:
    available = trained.output_names
    if not requested:
        return available if "logits" in available else ("features",)
    if missing := [name for name in requested if name not in available]:
        raise UsageError(
            f"--outputs of this model must be among {', '.join(available)}. Received: {', '.join(missing)}. Logits "
            "come from the folder of a probe or fine-tuning run, projections and scores from that of pretraining."
        )
    return requested


def _metadata(
    trained: TrainedModel, settings: ExportSettings, outputs: tuple[str, ...], view: EvaluationView
) -> OnnxMetadata:
    recipe, inside = trained.recipe, settings.graph_input == "uint8"
    tools = {tool: version_of(tool, f"{tool}-gpu", f"{tool}-cpu") for tool in TOOLS}
    return OnnxMetadata(
        precision="fp32",
        preprocessing=Preprocessing(
            resize=view.resize,
            crop=view.crop,
            background=recipe.data.background,
            mean=_three(trained.model.mean),
            std=_three(trained.model.std),
            layout="NHWC" if inside else "NCHW",
            inside=inside,
        ),
        recipe=recipe.name,
        step=trained.step,
        epoch=trained.epoch,
        data=public_data(recipe.data),
        dataset=dataset_name(recipe.data),
        weights_sha256=trained.weights_sha256,
        class_names=trained.class_names if "logits" in outputs else (),
        versions={"python": platform.python_version(), **tools},
    )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    """Return float32 values in their shortest decimals, as the recipe has them."""
    red, green, blue = (float(str(value)) for value in values)
    return red, green, blue


def _export_one(source: Source, precision: Precision, folder: Path, settings: ExportSettings) -> Exported:
    suffix = f"-{settings.target}" if precision == "int8" else ""
    path = folder / f"model-{precision}{suffix}.onnx"
    metadata = source.metadata.model_copy(update={"precision": precision})
    log.info("%s: %s", precision, path.name)
    kept: list[str] = []
    if precision == "int8":
        kept = save_int8(source.graph, metadata, path, settings, source.calibration)
    else:
        save_model(to_fp16(source.graph) if precision == "fp16" else source.graph, metadata, path)
    backend = OnnxBackend(path)
    outputs = run_all(backend, source.reference.images)
    parity = compare(source.reference, outputs, gate=GATES[precision], runner=backend.facts.runner)
    if not parity.passed:
        raise ExportError(f"{precision} does not reproduce Keras' outputs: {'; '.join(parity.failures)}.")
    size = sum(part.stat().st_size for part in folder.glob(f"{path.name}*"))
    return Exported(
        path, precision, size, parity, backend.checksum, metadata.step, metadata.epoch, tuple(kept)
    )


def _earlier_checksums(output: Path) -> dict[str, Checksum]:
    """Return the checksums of files that earlier exports left in the folder."""
    try:
        found = read_checksums(output)
    except DataError as error:
        log.warning("%s The export replaces parity.json; it will cover only the files of this export.", error)
        return {}
    return {name: checksum for name, checksum in found.items() if (output / name).exists()}
