"""Which cells a benchmark has: every model by every runner that can take it, or why it cannot. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.nvidia import no_gpu_because
from evaluate.benchmark.runner_facts import RUNNERS, why_not
from evaluate.benchmark.schema import Cell
from evaluate.runners.onnx_metadata import Precision

NOT_YET: Final = "not measured yet"
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True)
class Planned:
    """One cell to be.

    Attributes:
        cell: as it is before it is measured; skipped, or waiting.
        artifact: what it runs; None where it is skipped.
    """

    cell: Cell
    artifact: Artifact | None


def plan_cells(
    artifacts: Sequence[Artifact],
    *,
    runners: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    batches: Sequence[int],
) -> list[Planned]:
    """All cells, runner by runner.

    Args:
        artifacts: what there is.
        runners: that are wanted; None: all that have something to run here, peers left out.
        precisions: that are wanted; None: all that there are.
        batches: numbers of images in a call.

    Raises:
        UsageError: there is no runner of such a name.
    """
    planned = []
    reasons = {runner: why_not(runner) for runner in runners or RUNNERS}
    names = dict.fromkeys(artifact.model.name for artifact in artifacts)
    for runner in runners if runners is not None else _useful(artifacts):
        for name in names:
            of_model = [artifact for artifact in artifacts if artifact.model.name == name]
            wanted = precisions or sorted({a.model.precision for a in of_model}, key=PRECISIONS.index)
            for precision in wanted:
                if precision != "fp32" and (RUNNERS[runner].peer or runner == "keras"):
                    continue  # they have no other
                artifact, lacking = _for_runner(of_model, runner, precision)
                if artifact is None and runners is None:
                    continue
                for batch in batches:
                    reason = reasons[runner] or lacking or _batch_beyond(artifact, batch)
                    cell = Cell(
                        model=name,
                        runner=runner,
                        precision=precision,
                        batch=batch,
                        file=None if artifact is None else str(artifact.path),
                        status="skipped",
                        reason=reason or NOT_YET,
                    )
                    planned.append(Planned(cell, None if reason else artifact))
    return planned


def with_peers(runners: Sequence[str] | None) -> tuple[str, ...]:
    """The runners that are wanted, or all but the peers where none is named; behind them the peers."""
    named = runners or tuple(name for name, facts in RUNNERS.items() if not facts.peer)
    return (*named, *(name for name, facts in RUNNERS.items() if facts.peer and name not in named))


def _batch_beyond(artifact: Artifact | None, batch: int) -> str | None:
    """Why a file cannot take a batch; None if it can."""
    if artifact is None or artifact.batches is None or artifact.batches[0] <= batch <= artifact.batches[1]:
        return None
    return f"{artifact.path.name} takes {artifact.batches[0]} to {artifact.batches[1]} images at once"


def _useful(artifacts: Sequence[Artifact]) -> list[str]:
    kinds = {artifact.model.kind for artifact in artifacts}
    gpu = no_gpu_because() is None
    return [
        name
        for name, facts in RUNNERS.items()
        if facts.takes in kinds and not facts.peer and (gpu or not facts.gpu)
    ]


def _for_runner(
    artifacts: Sequence[Artifact], runner: str, precision: Precision
) -> tuple[Artifact | None, str | None]:
    """The file that a runner takes in a precision, or why there is none."""
    facts = RUNNERS[runner]
    fitting = [a for a in artifacts if a.model.kind == facts.takes and a.model.precision == precision]
    where = "tensorrt" if facts.gpu else "cpu"
    if facts.takes == "onnx" and precision == "int8":
        others = fitting
        fitting = [artifact for artifact in fitting if artifact.target == where]
        if others and not fitting:
            return None, (
                f"the int8 file is for {others[0].target}, and int8 graphs differ: "
                f"swav-tf export --precision int8 --target {where}"
            )
    if fitting:
        return fitting[0], None
    missing = {
        "onnx": f"no {precision} .onnx file was given: swav-tf export --precision {precision}",
        "engine": f"no {precision} engine was given: swav-tf export --to tensorrt --precision {precision}",
        "run": "Keras runs run folders, and none was given",
    }
    return None, missing[facts.takes]
