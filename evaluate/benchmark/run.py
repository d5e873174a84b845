"""The benchmark: cell after cell, each in a fresh process, and what its times mean. No TensorFlow."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np

from evaluate.benchmark import latency
from evaluate.benchmark.machine import Machine, describe_machine
from evaluate.benchmark.plan import NOT_YET, Artifact, Planned
from evaluate.benchmark.roofline import Limits, Work, count_work, what_bounds
from evaluate.benchmark.schema import (
    Benchmark,
    Cell,
    Conditions,
    Explanation,
    Memory,
    Peak,
    Settings,
    Timing,
)
from evaluate.benchmark.targets import RUNNERS
from evaluate.benchmark.worker import Answer, Request, Samples
from evaluate.runners.onnx_metadata import Precision
from swav_tf.errors import UsageError

# What a cell is marked for: docs/benchmark.md.
STANDARD_SECONDS: Final = 3.0
STANDARD_RUNS: Final = 100
VARIATION: Final = 0.1
OTHERS: Final = 0.1
# From one process to the next the same code differs by about this, where it is not measured by --rounds.
BETWEEN_PROCESSES: Final = 0.02
LEAST_COSINE: Final = {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}

Tell = Callable[[Cell, int, int], None]


@dataclass
class _Progress:
    """What is known so far.

    Attributes:
        cells: in the order of the plan.
        answers: of the rounds of each cell, by its place.
        peaks: the machine's limits.
        works: arithmetic of a file by its path.
    """

    cells: list[Cell]
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    peaks: list[Peak] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)


def run_benchmark(
    planned: Sequence[Planned],
    artifacts: Sequence[Artifact],
    settings: Settings,
    *,
    timeout_seconds: float,
    kept: Benchmark | None = None,
    tell: Tell = lambda cell, done, total: None,
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
    state = _Progress([one.cell for one in planned])
    done = _taken_over(kept, machine, settings, artifacts, state)
    waiting = [place for place, one in enumerate(planned) if one.artifact is not None and place not in done]
    state.works = {
        str(artifact.path): count_work(artifact.path) for artifact in artifacts if artifact.kind == "onnx"
    }

    def now(complete: bool) -> Benchmark:
        return Benchmark(
            created=created,
            complete=complete,
            settings=settings,
            machine=machine,
            peaks=tuple(state.peaks),
            models=tuple(artifact.model for artifact in artifacts),
            cells=tuple(_explained(state)),
        )

    total, count = len(waiting) * settings.rounds, 0
    try:
        if kept is None or waiting:
            state.peaks += _peaks(planned, waiting, settings, timeout_seconds, state.peaks)
        failed: set[int] = set()
        for _ in range(settings.rounds):
            for place in waiting:
                one = planned[place]
                tell(one.cell, count, total)
                count += 1
                if place in failed or one.artifact is None:
                    continue
                answer = ask(_request(one, settings), timeout_seconds=timeout_seconds)
                rounds = state.answers.setdefault(place, [])
                rounds.append(answer)
                state.cells[place] = cell_of(one.cell, rounds, settings)
                if state.cells[place].status == "failed":
                    failed.add(place)
                save(now(complete=False))
    except KeyboardInterrupt:
        return now(complete=False)
    return now(complete=True)


def ask(request: Request, *, timeout_seconds: float) -> Answer:
    """Has a fresh process answer a request; whatever befalls it is an answer too."""
    # The package's own place comes first: `evaluate` is a name that others use as well.
    here = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": here, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        file = Path(folder) / "answer.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evaluate.benchmark.worker", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours: it is ended below
        )
        try:
            _, stderr = process.communicate(request.model_dump_json(), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return Answer(error=f"no result after {timeout_seconds:g} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        try:
            return Answer.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Answer(error=_death(process.returncode, stderr))


def _death(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    if code < 0:
        return f"its process ended with {signal.Signals(-code).name}: {last[:300]}"
    return f"its process ended with exit code {code}: {last[:300]}"


def _request(planned: Planned, settings: Settings) -> Request:
    cell = planned.cell
    assert planned.artifact is not None
    return Request(
        task="cell",
        runner=cell.runner,
        path=str(planned.artifact.path.resolve()),
        precision=cell.precision,
        batch=cell.batch,
        threads=settings.threads,
        cuda_graph=settings.cuda_graph,
        seconds=settings.seconds,
        runs=settings.runs,
        max_seconds=settings.max_seconds,
    )


def _peaks(
    planned: Sequence[Planned],
    waiting: Iterable[int],
    settings: Settings,
    timeout_seconds: float,
    known: Sequence[Peak],
) -> list[Peak]:
    """The machine's limits for the cells that wait; none where they cannot be measured."""
    wanted: dict[tuple[Literal["cpu", "cuda"], Precision], None] = {}
    for place in waiting:
        facts = RUNNERS[planned[place].cell.runner]
        wanted[("cuda" if facts.gpu else "cpu", planned[place].cell.precision)] = None
    found = []
    for device, precision in wanted:
        if any((peak.device, peak.precision) == (device, precision) for peak in known):
            continue
        request = Request(task="peak", runner=device, precision=precision, threads=settings.threads)
        answer = ask(request, timeout_seconds=timeout_seconds)
        if answer.gflops is not None and answer.gbytes is not None:
            found.append(Peak(device=device, precision=precision, gflops=answer.gflops, gbytes=answer.gbytes))
    return found


# === From samples to a cell ===


def cell_of(cell: Cell, answers: Sequence[Answer], settings: Settings) -> Cell:
    """A cell with the figures of its rounds.

    Args:
        cell: as it was planned.
        answers: of its rounds so far, at least one.
        settings: how it was measured.
    """
    if error := next((answer.error for answer in answers if answer.error is not None), None):
        return cell.model_copy(update={"status": "failed", "reason": error.strip()})
    first = answers[0]
    host = timing_of([a.host for a in answers if a.host is not None], cell.batch)
    device = timing_of([a.device for a in answers if a.device is not None], cell.batch)
    cosine = first.feature_cosine
    figures = {
        "host": host,
        "device": device,
        "memory": Memory(
            host_peak_mib=first.host_peak_mib, host_before_mib=first.host_before_mib, gpu_mib=first.gpu_mib
        ),
        "conditions": Conditions(
            load=_greatest(answer.load for answer in answers),
            others_cpu_share=_greatest(answer.others_cpu_share for answer in answers),
            gpu_clock_mhz=first.gpu_clock_mhz,
            gpu_throttling=next((a.gpu_throttling for a in answers if a.gpu_throttling), None),
        ),
        "feature_cosine": cosine,
        "cuda_graph": first.cuda_graph,
    }
    if cosine is not None and cosine < LEAST_COSINE[cell.precision]:
        reason = f"it does not compute the model's features: their cosine with Keras' is {cosine:.4f}"
        return cell.model_copy(update={"status": "failed", "reason": reason, **figures})
    measured = cell.model_copy(update={"status": "ok", "reason": None, **figures})
    return measured.model_copy(update={"marks": (*first.notes, *marks_of(measured))})


def timing_of(rounds: Sequence[Samples], batch: int) -> Timing | None:
    """The figures of all rounds' runs; None of no round."""
    if not rounds:
        return None
    blocks = [[round(mean, 5) for mean in latency.block_means(samples.ms)] for samples in rounds]
    runs = [ms for samples in rounds for ms in samples.ms]
    p90, p95, p99 = (latency.percentile_ms(runs, percentile) for percentile in (90, 95, 99))
    median = statistics.median(runs)
    return Timing(
        runs=len(runs),
        seconds=sum(runs) / 1000,
        warmup_runs=sum(samples.warmup_runs for samples in rounds),
        images_per_second=1000 * batch / median,
        images_per_second_error=latency.relative_error(blocks, between=BETWEEN_PROCESSES),
        p50_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(np.mean(runs)),
        min_ms=min(runs),
        max_ms=max(runs),
        variation=latency.coefficient_of_variation(runs),
        rounds_ms=tuple(tuple(means) for means in blocks),
    )


def marks_of(cell: Cell) -> list[str]:
    """Why a cell's figures deserve less trust, in words."""
    marks = []
    for where, timing in (("host", cell.host), ("device", cell.device)):
        if timing is None:
            continue
        which = f"{where}: " if cell.host and cell.device else ""
        if timing.runs < STANDARD_RUNS or timing.seconds < STANDARD_SECONDS:
            marks.append(f"{which}short, {timing.runs:,} runs in {timing.seconds:.1f} s")
        if timing.variation > VARIATION:
            marks.append(f"{which}unstable, runs vary by {100 * timing.variation:.0f} %")
    conditions = cell.conditions or Conditions()
    if (share := conditions.others_cpu_share) is not None and share > OTHERS:
        marks.append(f"busy, others took {100 * share:.0f} % of the CPU")
    if conditions.gpu_throttling:
        marks.append(f"throttled, nvidia-smi says {conditions.gpu_throttling}")
    return marks


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


# === What the time goes into ===


def _explained(state: _Progress) -> list[Cell]:
    """The cells, with what bounds each: that takes all batches and the machine's limits."""
    return [
        cell.model_copy(update={"explanation": _explanation(cell, state)}) if cell.status == "ok" else cell
        for cell in state.cells
    ]


def _explanation(cell: Cell, state: _Progress) -> Explanation:
    best = cell.best
    assert best is not None
    transfer = None
    if cell.host and cell.device:
        transfer = max(0.0, 1 - cell.device.p50_ms / cell.host.p50_ms)
    work, limits = _work_and_limits(cell, state)
    share = by_memory = None
    if work is not None and limits is not None:
        share = best.images_per_second / limits.attainable(work, cell.precision, cell.batch)
        by_memory = limits.by_memory(work, cell.precision, cell.batch)
    fixed = _fixed_share(cell, state.cells)
    return Explanation(
        bound=what_bounds(transfer_share=transfer, fixed_share=fixed, by_memory=by_memory),
        transfer_share=transfer,
        fixed_share=fixed,
        roofline_share=share,
    )


def _fixed_share(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """What a call costs whatever the batch, over this cell's time; by the other batches of its row."""
    series = [other for other in cells if other.status == "ok" and other.key[:3] == cell.key[:3]]
    timed = [(other.batch, other.best.p50_ms) for other in series if other.best is not None]
    line = latency.fixed_and_per_image([batch for batch, _ in timed], [ms for _, ms in timed])
    if line is None or cell.best is None:
        return None
    return min(1.0, line[0] / cell.best.p50_ms)


def _work_and_limits(cell: Cell, state: _Progress) -> tuple[Work | None, Limits | None]:
    """An engine or a run does the arithmetic of the same model's ONNX file."""
    of_model = {other.file for other in state.cells if other.model == cell.model and other.file}
    work = state.works.get(cell.file or "") or next(
        (state.works[file] for file in sorted(of_model) if file in state.works), None
    )
    device = "cuda" if RUNNERS[cell.runner].gpu else "cpu"
    limits = next(
        (
            Limits(peak.gflops * 1e9, peak.gbytes * 1e9)
            for peak in state.peaks
            if (peak.device, peak.precision) == (device, cell.precision)
        ),
        None,
    )
    return work, limits


# === Going on with an earlier benchmark ===


def _taken_over(
    kept: Benchmark | None,
    machine: Machine,
    settings: Settings,
    artifacts: Sequence[Artifact],
    state: _Progress,
) -> set[int]:
    """Puts the cells of an earlier benchmark in place; the places of those that need not be measured again."""
    if kept is None:
        return set()
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
    same = {a.model.file_sha256 for a in artifacts} & {m.file_sha256 for m in kept.models}
    files = {str(a.path) for a in artifacts if a.model.file_sha256 in same}
    before = {cell.key: cell for cell in kept.cells if cell.status == "ok" and cell.file in files}
    state.peaks += kept.peaks
    done = set()
    for place, cell in enumerate(state.cells):
        old = before.get(cell.key)
        rounds = len(old.best.rounds_ms) if old is not None and old.best is not None else 0
        if old is not None and cell.reason == NOT_YET and rounds == settings.rounds:
            state.cells[place] = old
            done.add(place)
    return done
