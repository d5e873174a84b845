"""Measure every cell of a benchmark in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.artifacts import Artifact
from evaluate.benchmark.explain import explained
from evaluate.benchmark.figures import cell_of
from evaluate.benchmark.machine import Machine, describe_machine, no_gpu_because
from evaluate.benchmark.process import ask
from evaluate.benchmark.runner_facts import RUNNERS, why_not
from evaluate.benchmark.schema import Benchmark, Cell, Peak, Settings
from evaluate.benchmark.work import count_work
from evaluate.benchmark.worker import Answer, Request
from swav_tf.plumbing.errors import UsageError


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
