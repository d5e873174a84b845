"""From exported ONNX files to engines beside them: built, proven, and compared where there is a GPU. No TensorFlow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.backends.engine_file import EngineFacts
from evaluate.backends.onnx_metadata import Precision
from evaluate.backends.tensorrt_backend import TensorrtBackend
from export.engine import EngineSettings, build_engine
from export.engine_cache import Built
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, Reference, read_reference
from export.staging import ExportError
from swav_tf.plumbing.files import atomic_write


@dataclass(frozen=True)
class ExportedEngine:
    """One engine.

    Attributes:
        path: where it is.
        precision: of its backbone, proven.
        bytes: its size.
        facts: what it is.
        from_cache: whether it had been built before.
        parity: how near to Keras it is; None: it was not run.
        not_compared: why not, or "".
    """

    path: Path
    precision: Precision
    bytes: int
    facts: EngineFacts
    from_cache: bool
    parity: Parity | None
    not_compared: str = ""


def export_engines(files: Sequence[Path], output: Path, settings: EngineSettings) -> list[ExportedEngine]:
    """Builds the engine of each ONNX file and writes it, with its sidecar, into a folder.

    Args:
        files: by `swav-tf export`; the reference beside them is what the engines are compared with.
        output: the folder; engines of these names in it are replaced.
        settings: of the builder.

    Raises:
        UsageError: TensorRT or the GPU is missing, or an option cannot be honoured.
        DataError: a file is damaged, or the disk refuses.
        ExportError: an engine cannot be built, is of another precision, or computes something else.
    """
    exported = []
    for path in files:
        built = build_engine(path, settings)
        source = path.parent / REFERENCE
        reference = read_reference(source) if source.is_file() else None
        parity, reason = _compared(built, reference)
        if parity is not None and not parity.passed:
            raise ExportError(
                f"The engine of {path.name} does not compute what Keras computes: {'; '.join(parity.failures)}."
            )
        if reference is not None:
            _bring_along(source, output / REFERENCE)
        plan = output / f"{path.stem}.plan"
        built.place(plan)
        precision = built.facts.metadata(plan).precision
        exported.append(
            ExportedEngine(plan, precision, len(built.data), built.facts, built.from_cache, parity, reason)
        )
    return exported


def _bring_along(source: Path, target: Path) -> None:
    """The reference goes where the engine will lie, for `verify`; one that is there stays."""
    if not target.exists():
        with atomic_write(target) as partial:
            shutil.copyfile(source, partial)


def _compared(built: Built, reference: Reference | None) -> tuple[Parity | None, str]:
    """Figures of the engine in the cache, or why there are none."""
    if built.facts.gpu is None:
        return None, "built for GPUs of Ampere and newer; not run, features not compared here: no GPU"
    if reference is None:
        return None, f"features not compared: no {REFERENCE} beside the ONNX file"
    runner = TensorrtBackend(built.plan)
    outputs = run_all(runner, reference.images, batch_size=built.facts.profile.max)
    return compare(reference, outputs, gate=GATES[runner.metadata.precision]), ""
