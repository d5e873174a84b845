"""Measure the cells of a benchmark, each in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from evaluate.benchmark.figures import cell_of
from evaluate.benchmark.machine import describe_machine
from evaluate.benchmark.schema import NOT_YET, Benchmark, Cell, Model, Settings
from evaluate.benchmark.worker import Answer, Request, measure_in_process


def run_benchmark(
    planned: Sequence[Cell],
    models: Sequence[Model],
    settings: Settings,
    *,
    timeout_seconds: float,
    before_each: Callable[[Cell, int, int], None] = lambda cell, done, total: None,
    after_each: Callable[[Benchmark], None] = lambda benchmark: None,
) -> Benchmark:
    """Measure the cells of `plan_cells(models)` in `settings.rounds` rounds.

    Ctrl-C ends the benchmark early; the result then contains what was measured, with `complete` False.

    Args:
        planned: the cells.
        models: files and run folders.
        settings: how to measure.
        timeout_seconds: a cell whose process takes longer has failed.
        before_each: called before each process with its cell, the number of finished processes, and their total.
        after_each: called after each process with the state of the benchmark.
    """
    state = Benchmark(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=False,
        settings=settings,
        machine=describe_machine(),
        models=tuple(models),
        cells=tuple(planned),
    )
    cells = [*planned]
    waiting = [place for place, cell in enumerate(cells) if cell.reason == NOT_YET]
    answers: dict[int, list[Answer]] = {place: [] for place in waiting}

    def result(*, complete: bool) -> Benchmark:
        return state.model_copy(update={"cells": tuple(cells), "complete": complete})

    try:
        for number, place in enumerate(waiting * settings.rounds):
            cell = planned[place]
            before_each(cell, number, len(waiting) * settings.rounds)
            if cells[place].status == "failed":
                continue  # in an earlier round
            path = str(Path(cell.file or "").resolve())
            request = Request(runner=cell.runner, path=path, batch=cell.batch, settings=settings)
            answers[place].append(measure_in_process(request, timeout_seconds=timeout_seconds))
            cells[place] = cell_of(cell, answers[place])
            after_each(result(complete=False))
    except KeyboardInterrupt:
        return result(complete=False)
    return result(complete=True)
