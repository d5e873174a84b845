"""What an earlier benchmark spares the one that goes on with it. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.machine import Machine
from evaluate.benchmark.plan import NOT_YET
from evaluate.benchmark.schema import Benchmark, Cell, Settings
from swav_tf.errors import UsageError


def kept_cells(
    kept: Benchmark,
    planned: Sequence[Cell],
    *,
    artifacts: Sequence[Artifact],
    machine: Machine,
    settings: Settings,
) -> dict[int, Cell]:
    """The cells that went well and need not be measured again, by their places in the plan.

    Args:
        kept: the earlier benchmark.
        planned: the cells now.
        artifacts: what they run: a cell of another file content is not kept.
        machine: this one.
        settings: how it is measured now.

    Raises:
        UsageError: `kept` is of another machine, or measured otherwise.
    """
    different = [
        f"{name} is {new}, was {old}"
        for name, new, old in (
            ("the CPU", machine.cpu, kept.machine.cpu),
            ("the number of cores", machine.cores, kept.machine.cores),
            ("the GPU", [gpu.name for gpu in machine.gpus], [gpu.name for gpu in kept.machine.gpus]),
            ("what is installed", machine.versions, kept.machine.versions),
            ("how it is measured", settings, kept.settings),
        )
        if new != old
    ]
    if different:
        raise UsageError(
            f"--resume goes on with a benchmark of the same machine and settings. Received: {'; '.join(different)}. "
            "Give another --json file, or leave --resume out."
        )
    contents = {model.file_sha256 for model in kept.models}
    files = {str(artifact.path) for artifact in artifacts if artifact.model.file_sha256 in contents}
    before = {
        cell.key: cell
        for cell in kept.cells
        if cell.file in files and cell.best is not None and len(cell.best.rounds_ms) == settings.rounds
    }
    return {
        place: before[cell.key]
        for place, cell in enumerate(planned)
        if cell.reason == NOT_YET and cell.key in before
    }
