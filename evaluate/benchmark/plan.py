"""Plan the cells of a benchmark: which runner takes which file, and why some cells cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.machine import Machine, no_gpu_reason
from evaluate.benchmark.runners import RUNNERS, why_unavailable
from evaluate.benchmark.schema import Benchmark, Cell, Settings
from swav_tf.plumbing.errors import UsageError

NOT_YET: Final = "not measured yet"
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True)
class PlannedCell:
    """A cell to be measured.

    Attributes:
        cell: skipped, for its final reason or because it is not measured yet.
        artifact: what it runs; None if it cannot be measured.
    """

    cell: Cell
    artifact: Artifact | None


def plan_cells(
    artifacts: Sequence[Artifact],
    *,
    runners: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    batches: Sequence[int],
) -> list[PlannedCell]:
    """Return all cells, runner by runner.

    Args:
        artifacts: files and run folders.
        runners: requested runners; None: all that can run an artifact here.
        precisions: requested precisions; None: all that a model has.
        batches: numbers of images per call.

    Raises:
        UsageError: there is no runner of a given name.
    """
    planned = []
    names = dict.fromkeys(artifact.model.name for artifact in artifacts)
    for runner in _useful_runners(artifacts) if runners is None else runners:
        unavailable = why_unavailable(runner)
        for name in names:
            of_model = [artifact for artifact in artifacts if artifact.model.name == name]
            available = sorted({artifact.model.precision for artifact in of_model}, key=PRECISIONS.index)
            for precision in precisions or available:
                if runner == "keras" and precision != "fp32":
                    continue
                artifact, missing = _artifact_for(of_model, runner, precision)
                if artifact is None and runners is None:
                    continue
                for batch in batches:
                    reason = unavailable or missing or _outside_profile(artifact, batch)
                    cell = Cell(
                        model=name,
                        runner=runner,
                        precision=precision,
                        batch=batch,
                        file=None if artifact is None else str(artifact.path),
                        status="skipped",
                        reason=reason or NOT_YET,
                    )
                    planned.append(PlannedCell(cell, None if reason else artifact))
    return planned


def _useful_runners(artifacts: Sequence[Artifact]) -> list[str]:
    kinds = {artifact.model.kind for artifact in artifacts}
    gpu = no_gpu_reason() is None
    return [name for name, facts in RUNNERS.items() if facts.takes in kinds and (gpu or not facts.gpu)]


def _artifact_for(
    artifacts: Sequence[Artifact], runner: str, precision: Precision
) -> tuple[Artifact | None, str | None]:
    """Return the file a runner takes in a precision, or why there is none."""
    facts = RUNNERS[runner]
    fitting = [a for a in artifacts if a.model.kind == facts.takes and a.model.precision == precision]
    if facts.takes == "onnx" and precision == "int8":
        target = "tensorrt" if facts.gpu else "cpu"
        others, fitting = fitting, [artifact for artifact in fitting if artifact.target == target]
        if others and not fitting:
            return None, (
                f"the int8 file is for {others[0].target}, and int8 graphs differ: "
                f"swav-tf export --precision int8 --target {target}"
            )
    if fitting:
        return fitting[0], None
    missing = {
        "onnx": f"no {precision} .onnx file was given: swav-tf export --precision {precision}",
        "engine": f"no {precision} engine was given: swav-tf export --to tensorrt --precision {precision}",
        "run": "Keras runs run folders, and none was given",
    }
    return None, missing[facts.takes]


def _outside_profile(artifact: Artifact | None, batch: int) -> str | None:
    """Return why a file cannot take a batch, None if it can."""
    if artifact is None or artifact.batches is None or artifact.batches[0] <= batch <= artifact.batches[1]:
        return None
    return f"{artifact.path.name} takes {artifact.batches[0]} to {artifact.batches[1]} images per call"


def kept_cells(
    kept: Benchmark,
    planned: Sequence[PlannedCell],
    artifacts: Sequence[Artifact],
    machine: Machine,
    settings: Settings,
) -> dict[int, Cell]:
    """Return the measured cells of an earlier benchmark by their places in the plan.

    Cells are kept if they are ok, have all their rounds, and their file has not changed.

    Raises:
        UsageError: the earlier benchmark is of another machine or has other settings.
    """
    different = [
        f"{name}: {new}, was {old}"
        for name, new, old in (
            ("CPU", machine.cpu, kept.machine.cpu),
            ("cores", machine.cores, kept.machine.cores),
            ("GPUs", [gpu.name for gpu in machine.gpus], [gpu.name for gpu in kept.machine.gpus]),
            ("packages", machine.versions, kept.machine.versions),
            ("settings", settings, kept.settings),
        )
        if new != old
    ]
    if different:
        raise UsageError(
            "--resume requires a benchmark of the same machine and settings. Received: "
            f"{'; '.join(different)}. Give another --json file, or omit --resume."
        )
    contents = {model.file_sha256 for model in kept.models}
    files = {str(artifact.path) for artifact in artifacts if artifact.model.file_sha256 in contents}
    before = {
        cell.key: cell
        for cell in kept.cells
        if cell.file in files and cell.best is not None and len(cell.best.rounds_ms) == settings.rounds
    }
    return {
        place: before[one.cell.key]
        for place, one in enumerate(planned)
        if one.artifact is not None and one.cell.key in before
    }
