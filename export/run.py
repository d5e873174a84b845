"""Export a run: files that were checked, run and compared with Keras; all of them or none."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

from evaluate.backends.checksums import PARITY, Checksum, read_checksums
from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import Precision
from export.fp16 import to_fp16
from export.int8 import save_int8
from export.onnx_file import save_model
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, write_reference
from export.settings import ExportSettings
from export.source import ExportSource, from_keras
from export.staging import ExportError, filled_folder
from export.verify import parity_text
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log


@dataclass(frozen=True)
class Exported:
    """One exported file.

    Attributes:
        path: of the graph.
        precision: of its backbone.
        bytes: size of the graph and its weights.
        parity: the comparison with Keras.
        checksum: of the graph, which contains that of its weights.
        float32_convolutions: int8 only: names of those that stayed in float32 to meet the gate.
    """

    path: Path
    precision: Precision
    bytes: int
    parity: Parity
    checksum: Checksum
    float32_convolutions: tuple[str, ...] = ()


def export_run(run_dir: Path, output: Path, settings: ExportSettings) -> list[Exported]:
    """Write ONNX files, reference.npz and parity.json into a folder.

    Args:
        run_dir: of a pretraining run, a probe or fine-tuning.
        output: the folder; files of the same names are replaced.
        settings: what to write.

    Raises:
        UsageError: the model lacks an output or checkpoint, or is too large for int8.
        DataError: too few readable images.
        ExportError: a file misses its gate, or the disk is full.
        CheckpointError: the checkpoint is damaged.
    """
    settings.check()
    source = from_keras(run_dir, settings)
    gc.collect()  # Keras' model has reference cycles, and is as large as the graph
    checksums = _earlier_checksums(output)
    with filled_folder(output) as folder:
        write_reference(folder / REFERENCE, source.reference)
        exported = [_export_one(source, precision, folder, settings) for precision in settings.precisions]
        results = {file.path.name: (file.precision, file.parity) for file in exported}
        checksums |= {file.path.name: file.checksum for file in exported}
        text = parity_text(source.reference, results, checksums)
        (folder / PARITY).write_text(text, encoding="utf-8")
    return [replace(file, path=output / file.path.name) for file in exported]


def _export_one(
    source: ExportSource, precision: Precision, folder: Path, settings: ExportSettings
) -> Exported:
    suffix = f"-{settings.target}" if precision == "int8" else ""
    path = folder / f"model-{precision}{suffix}.onnx"
    facts = source.facts.model_copy(update={"precision": precision})
    log.info("%s: %s", precision, path.name)
    kept: list[str] = []
    if precision == "fp32":
        save_model(source.graph, facts, path)
    elif precision == "fp16":
        save_model(to_fp16(source.graph), facts, path)
    else:
        kept = save_int8(source.graph, facts, path, settings, source.calibration)
    runner = OnnxBackend(path)
    parity = compare(source.reference, run_all(runner, source.reference.images), gate=GATES[precision])
    if not parity.passed:
        raise ExportError(f"{precision} does not compute what Keras computes: {'; '.join(parity.failures)}.")
    size = sum(part.stat().st_size for part in folder.glob(f"{path.name}*"))
    return Exported(path, precision, size, parity, runner.checksum, tuple(kept))


def _earlier_checksums(output: Path) -> dict[str, Checksum]:
    """Return the checksums of files that earlier exports left in the folder."""
    try:
        found = read_checksums(output)
    except DataError as error:
        log.warning("%s It is replaced, for the files of this export only.", error)
        return {}
    return {name: checksum for name, checksum in found.items() if (output / name).exists()}
