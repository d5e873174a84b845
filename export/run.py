"""From a run folder to files that were checked, run and compared; all of them or none."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from evaluate.backends.checksums import PARITY, Checksum, read_checksums
from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import Precision
from export.fp16 import to_fp16
from export.int8 import Target
from export.int8_file import save_int8
from export.onnx_file import save_model
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, write_reference
from export.settings import ExportSettings
from export.source import ExportSource, from_keras
from export.staging import ExportError, filled_folder
from export.verify import parity_text
from swav_tf.plumbing.errors import DataError


def file_name(precision: Precision, target: Target) -> str:
    """What the file of a precision is called; int8 is one for each target."""
    return f"model-{precision}-{target}.onnx" if precision == "int8" else f"model-{precision}.onnx"


@dataclass(frozen=True)
class Exported:
    """One file.

    Attributes:
        path: where it is.
        precision: of its backbone.
        bytes: its size.
        parity: how near to Keras it is.
        checksum: of the file; of the weights of a large graph it holds another.
        float32_convolutions: int8 only: names of those that stayed in float32 to meet the gate.
    """

    path: Path
    precision: Precision
    bytes: int
    parity: Parity
    checksum: Checksum
    float32_convolutions: tuple[str, ...] = ()


def export_run(
    run_dir: Path,
    output: Path,
    settings: ExportSettings,
    *,
    tell: Callable[[str], None],
) -> list[Exported]:
    """Writes ONNX files, reference.npz and parity.json into a folder.

    Args:
        run_dir: of a pretraining run, a probe or fine-tuning.
        output: the folder; files of these names in it are replaced.
        settings: what to write.
        tell: called with a line about what goes on.

    Raises:
        UsageError: what is asked for cannot be had.
        DataError: images are missing.
        ExportError: a file would not be what was asked for, or the disk refuses.
        CheckpointError: the checkpoint is damaged.
    """
    settings.check()
    source = from_keras(run_dir, settings, tell=tell)
    gc.collect()  # Keras' model is full of circles, and as large as the graph
    checksums = _checksums_of_others(output, tell)
    with filled_folder(output, option="--output") as folder:
        write_reference(folder / REFERENCE, source.reference)
        exported = [
            _export_one(source, precision, folder, settings, tell) for precision in settings.precisions
        ]
        results = {file.path.name: (file.precision, file.parity) for file in exported}
        checksums |= {file.path.name: file.checksum for file in exported}
        text = parity_text(source.reference, results, checksums)
        (folder / PARITY).write_text(text, encoding="utf-8")
    return [replace(file, path=output / file.path.name) for file in exported]


def _export_one(
    source: ExportSource,
    precision: Precision,
    folder: Path,
    settings: ExportSettings,
    tell: Callable[[str], None],
) -> Exported:
    """One file, written, run and compared."""
    path = folder / file_name(precision, settings.target)
    facts = source.facts.model_copy(update={"precision": precision})
    tell(f"{precision}: {path.name}")
    kept: list[str] = []
    if precision == "fp32":
        save_model(source.graph, facts, path)
    elif precision == "fp16":
        save_model(to_fp16(source.graph), facts, path)
    else:
        kept = save_int8(source.graph, facts, path, settings, source.calibration, tell=tell)
    runner = OnnxBackend(path)
    parity = compare(source.reference, run_all(runner, source.reference.images), gate=GATES[precision])
    if not parity.passed:
        raise ExportError(f"{precision} does not compute what Keras computes: {'; '.join(parity.failures)}.")
    size = sum(part.stat().st_size for part in folder.glob(f"{path.name}*"))
    return Exported(path, precision, size, parity, runner.checksum, tuple(kept))


def _checksums_of_others(output: Path, tell: Callable[[str], None]) -> dict[str, Checksum]:
    """Those of files that earlier exports left in the folder."""
    try:
        found = read_checksums(output)
    except DataError as error:
        tell(f"{error} It is written anew, for the files of this export.")
        return {}
    return {name: checksum for name, checksum in found.items() if (output / name).exists()}
