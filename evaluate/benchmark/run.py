"""The benchmark: cell after cell, each in a fresh process. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.explain import explained
from evaluate.benchmark.figures import cell_of
from evaluate.benchmark.machine import describe_machine
from evaluate.benchmark.plan import Planned
from evaluate.benchmark.process import ask
from evaluate.benchmark.resume import kept_cells
from evaluate.benchmark.runner_facts import RUNNERS
from evaluate.benchmark.schema import Benchmark, Cell, Peak, Settings
from evaluate.benchmark.work import count_work
from evaluate.benchmark.worker import Answer, Request
from evaluate.runners.onnx_metadata import Precision


def run_benchmark(
    planned: Sequence[Planned],
    artifacts: Sequence[Artifact],
    settings: Settings,
    *,
    timeout_seconds: float,
    kept: Benchmark | None = None,
    tell: Callable[[Cell, int, int], None] = lambda cell, done, total: None,
    save: Callable[[Benchmark], None] = lambda benchmark: None,
) -> Benchmark:
    """Measures all cells, in `settings.rounds` rounds.

    Ctrl-C ends it early with what was measured until then, `complete` False.

    Args:
        planned: the cells.
        artifacts: what they run.
        settings: how to measure.
        timeout_seconds: after which a cell's process is ended, and the cell has failed.
        kept: an earlier benchmark of the same files on the same machine: its cells that went well are taken over.
        tell: called before each process with the cell, the number of processes done, and of all.
        save: called with the state of things after each cell.

    Raises:
        UsageError: `kept` is of another machine, or measured otherwise.
    """
    machine = describe_machine()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    cells = [one.cell for one in planned]
    peaks: list[Peak] = []
    done: dict[int, Cell] = {}
    if kept is not None:
        peaks += kept.peaks
        done = kept_cells(kept, cells, artifacts=artifacts, machine=machine, settings=settings)
    for place, cell in done.items():
        cells[place] = cell
    waiting = {
        place: one.artifact
        for place, one in enumerate(planned)
        if one.artifact is not None and place not in done
    }
    works = {
        str(artifact.path): count_work(artifact.path)
        for artifact in artifacts
        if artifact.model.kind == "onnx"
    }

    def now(*, complete: bool) -> Benchmark:
        return Benchmark(
            created=created,
            complete=complete,
            settings=settings,
            machine=machine,
            peaks=tuple(peaks),
            models=tuple(artifact.model for artifact in artifacts),
            cells=tuple(explained(cells, works=works, peaks=peaks)),
        )

    answers: dict[int, list[Answer]] = {place: [] for place in waiting}
    begun = 0
    try:
        peaks += _peaks((cells[place] for place in waiting), peaks, settings, timeout_seconds)
        for _ in range(settings.rounds):
            for place, artifact in waiting.items():
                cell = planned[place].cell
                tell(cell, begun, len(waiting) * settings.rounds)
                begun += 1
                if cells[place].status == "failed":
                    continue  # in an earlier round
                request = _request(cell, artifact, settings)
                answers[place].append(ask(request, timeout_seconds=timeout_seconds))
                cells[place] = cell_of(cell, answers[place])
                save(now(complete=False))
    except KeyboardInterrupt:
        return now(complete=False)
    return now(complete=True)


def _request(cell: Cell, artifact: Artifact, settings: Settings) -> Request:
    return Request(
        task="cell",
        runner=cell.runner,
        path=str(artifact.path.resolve()),
        precision=cell.precision,
        batch=cell.batch,
        threads=settings.threads,
        cuda_graph=settings.cuda_graph,
        seconds=settings.seconds,
        runs=settings.runs,
        max_seconds=settings.max_seconds,
    )


def _peaks(
    waiting: Iterable[Cell], known: Sequence[Peak], settings: Settings, timeout_seconds: float
) -> list[Peak]:
    """The machine's limits for the cells that wait, but for those known; none where they cannot be measured."""
    wanted: dict[tuple[Literal["cpu", "cuda"], Precision], None] = {}
    for cell in waiting:
        wanted[("cuda" if RUNNERS[cell.runner].gpu else "cpu", cell.precision)] = None
    found = []
    for device, precision in wanted:
        if any((peak.device, peak.precision) == (device, precision) for peak in known):
            continue
        request = Request(task="peak", runner=device, precision=precision, threads=settings.threads)
        answer = ask(request, timeout_seconds=timeout_seconds)
        if answer.gflops is not None and answer.gbytes is not None:
            found.append(Peak(device=device, precision=precision, gflops=answer.gflops, gbytes=answer.gbytes))
    return found
