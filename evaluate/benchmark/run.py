"""Measure the cells of a benchmark, each in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.figures import cell_of
from evaluate.benchmark.machine import describe_machine
from evaluate.benchmark.plan import PlannedCell, kept_cells
from evaluate.benchmark.schema import Benchmark, Cell, Settings
from evaluate.benchmark.worker import Answer, Request, measure_in_process


def run_benchmark(
    planned: Sequence[PlannedCell],
    artifacts: Sequence[Artifact],
    settings: Settings,
    *,
    timeout_seconds: float,
    kept: Benchmark | None = None,
    before_each: Callable[[Cell, int, int], None] = lambda cell, done, total: None,
    after_each: Callable[[Benchmark], None] = lambda benchmark: None,
) -> Benchmark:
    """Measure all cells in `settings.rounds` rounds.

    Ctrl-C ends the benchmark early; the result then contains what was measured, with `complete` False.

    Args:
        planned: the cells, by `plan_cells` from `artifacts`.
        artifacts: files and run folders.
        settings: how to measure.
        timeout_seconds: a cell whose process takes longer has failed.
        kept: an earlier benchmark whose measured cells are kept.
        before_each: called before each process with its cell, the number of finished processes, and their total.
        after_each: called after each process with the state of the benchmark.

    Raises:
        UsageError: `kept` is of another machine or has other settings.
    """
    machine, created = describe_machine(), datetime.now(UTC).isoformat(timespec="seconds")
    done = kept_cells(kept, planned, artifacts, machine, settings) if kept else {}
    cells = [done.get(place, one.cell) for place, one in enumerate(planned)]
    waiting = [place for place, one in enumerate(planned) if one.artifact and place not in done]
    answers: dict[int, list[Answer]] = {place: [] for place in waiting}

    def result(*, complete: bool) -> Benchmark:
        return Benchmark(
            created=created,
            complete=complete,
            settings=settings,
            machine=machine,
            models=tuple(artifact.model for artifact in artifacts),
            cells=tuple(cells),
        )

    try:
        for number, place in enumerate(waiting * settings.rounds):
            cell, artifact = planned[place].cell, planned[place].artifact
            assert artifact is not None
            before_each(cell, number, len(waiting) * settings.rounds)
            if cells[place].status == "failed":
                continue  # in an earlier round
            request = Request(
                runner=cell.runner, path=str(artifact.path.resolve()), batch=cell.batch, settings=settings
            )
            answers[place].append(measure_in_process(request, timeout_seconds=timeout_seconds))
            cells[place] = cell_of(cell, answers[place])
            after_each(result(complete=False))
    except KeyboardInterrupt:
        return result(complete=False)
    return result(complete=True)
