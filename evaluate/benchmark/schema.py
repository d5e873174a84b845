"""The records of a benchmark, its JSON file, and its figures; docs/benchmark.md explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.machine import Machine
from swav_tf.recipe.section import Section

FORMAT: Final = 3

Kind = Literal["onnx", "engine", "run"]
NOT_YET: Final = "not measured yet"  # reason of cells that are skipped for the time being

BEYOND: Final = 10  # samples that must lie beyond a percentile
BLOCKS: Final = 20
MEDIAN_FACTOR: Final = 1.2533  # standard error of a median over that of a mean, for normal samples
BETWEEN_PROCESSES: Final = 0.02  # relative standard deviation; one process alone cannot measure it
# Limits of the marks, see docs/benchmark.md.
STANDARD_SECONDS: Final = 3.0
STANDARD_RUNS: Final = 100
VARIATION: Final = 0.1
OTHERS: Final = 0.1


class Settings(Section):
    """How cells are measured."""

    seconds: float  # least time of each cell after warm-up
    runs: int  # fewest runs of each cell
    threads: int  # that compute a batch on a CPU; 0: one per core
    cuda_graph: bool  # record runs on a GPU as CUDA graphs where possible


class Accuracy(Section):
    """The result of `swav-tf verify` for a file, from its parity.json."""

    passed: bool  # the gate of its precision
    knn: float | None = None  # top-1 of k-NN with the file's features, each image by the others, 0 to 1
    knn_reference: float | None = None  # the same with Keras' float32 features
    knn_images: int = 0  # labeled images that k-NN classified
    cosine_min: float | None = None  # smallest cosine of an image's features with Keras'
    relative_error: float | None = None  # L2 error relative to Keras, largest of the outputs
    runner: str | None = None  # that computed the features which were compared

    @property
    def knn_change_points(self) -> float | None:
        """Return the k-NN accuracy minus that of Keras, in percentage points."""
        if self.knn is None or self.knn_reference is None:
            return None
        return 100 * (self.knn - self.knn_reference)


class Model(Section):
    """A file or run folder to measure."""

    name: str  # of its folder, shared by the files of one export; of a third-party file its own
    kind: Kind
    file: str  # path as given, or as found in the given folder
    precision: Precision  # of the backbone's arithmetic
    bytes: int  # of the file, or of the weights in the newest checkpoint
    file_sha256: str  # of the file, or of the checkpoint
    weights_sha256: str  # of the weights it was made from
    recipe: str  # name of the recipe it was trained with; of a third-party file its name
    step: int  # optimizer steps it was trained for
    side: int  # of its images, pixels
    target: str | None = None  # device that an exported int8 file is made for: cpu or tensorrt
    batches: tuple[int, int] | None = None  # fewest and most images per call; None: any
    accuracy: Accuracy | None = None  # None: not verified


class Timing(Section):
    """The times of one cell. A run is one call with one batch, timed until its result is available."""

    runs: int
    seconds: float  # sum of their times
    warmup_runs: int  # earlier runs, which are part of no figure
    images_per_second: float  # batch over the median time of a run
    images_per_second_error: float  # its relative standard error
    p50_ms: float
    p90_ms: float | None = None  # None for fewer than 100 runs
    p95_ms: float | None = None  # 200 runs
    p99_ms: float | None = None  # 1,000 runs
    mean_ms: float
    min_ms: float
    max_ms: float
    variation: float  # standard deviation of the runs over their mean


class Cell(Section):
    """One model on one runner in one precision at one batch size."""

    model: str  # its name
    runner: str  # such as ort-cpu
    precision: Precision  # of its arithmetic
    batch: int  # images per call
    file: str | None = None  # file or folder that was run
    status: Literal["ok", "skipped", "failed"]  # skipped: cannot run here; failed: should have run
    reason: str | None = None  # why it was skipped or failed
    host: Timing | None = None  # from uint8 images in host memory to arrays in host memory
    device: Timing | None = None  # with input and outputs in GPU memory, if separable
    marks: tuple[str, ...] = ()  # reasons to trust the figures less
    feature_cosine: float | None = None  # smallest with Keras' features
    cuda_graph: bool = False  # whether its runs were recorded as a CUDA graph
    host_peak_mib: float | None = None  # peak memory of its process
    gpu_mib: float | None = None  # increase of GPU memory in use by model and runs
    others_cpu_share: float | None = None  # share of all cores used by other processes, 0 to 1
    gpu_clock_mhz: float | None = None  # at the end of the timing
    gpu_throttling: str | None = None  # the driver's reasons for a lower GPU clock

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Return what identifies the cell within a benchmark."""
        return (self.model, self.runner, self.precision, self.batch)

    @property
    def label(self) -> str:
        """Return the name used by `--fail-below` and in messages, such as ort-cpu:fp32:32."""
        return f"{self.runner}:{self.precision}:{self.batch}"

    @property
    def best(self) -> Timing | None:
        """Return the device timing, else the host timing; None unless the cell is ok."""
        return (self.device or self.host) if self.status == "ok" else None


class Benchmark(Section):
    """A complete benchmark."""

    format: Literal[3] = FORMAT
    created: str  # start time, UTC
    complete: bool  # whether no cell is left to measure
    settings: Settings
    machine: Machine
    models: tuple[Model, ...]
    cells: tuple[Cell, ...]

    @property
    def several_models(self) -> bool:
        """Return whether a cell's label is ambiguous without the model."""
        return len({cell.model for cell in self.cells}) > 1

    @property
    def knn_images(self) -> list[int]:
        """Return the numbers of labeled images of the k-NN accuracies of measured models; none without any."""
        accuracies = [self.accuracy_of(cell) for cell in self.cells if cell.best]
        return sorted({each.knn_images for each in accuracies if each is not None and each.knn is not None})

    def accuracy_of(self, cell: Cell) -> Accuracy | None:
        """Return the accuracy of a cell's file, None if it was not verified."""
        return next((model.accuracy for model in self.models if model.file == cell.file), None)


# === Figures of measured times ===


def timing_of(milliseconds: Sequence[float], *, warmup_runs: int, batch: int) -> Timing:
    """Return the figures of at least one run."""
    runs = np.asarray(milliseconds, np.float64)
    median = float(np.median(runs))
    return Timing(
        runs=len(runs),
        seconds=float(runs.sum()) / 1000,
        warmup_runs=warmup_runs,
        images_per_second=1000 * batch / median,
        images_per_second_error=relative_error(runs),
        p50_ms=median,
        p90_ms=percentile(runs, 90),
        p95_ms=percentile(runs, 95),
        p99_ms=percentile(runs, 99),
        mean_ms=float(runs.mean()),
        min_ms=float(runs.min()),
        max_ms=float(runs.max()),
        variation=float(runs.std(ddof=1) / runs.mean()) if len(runs) > 1 else 0.0,
    )


def percentile(runs: np.ndarray, percent: float) -> float | None:
    """Return a percentile of times, None unless BEYOND of them lie beyond it."""
    if len(runs) < round(BEYOND / (1 - percent / 100)):
        return None
    return float(np.percentile(runs, percent))


def relative_error(runs: np.ndarray) -> float:
    """Return the relative standard error of the median time of a run, over repetitions of the benchmark.

    Consecutive runs are correlated: a busy second slows many of them. Means of consecutive blocks are nearly
    independent, so the error follows from their spread, and from an assumed one between processes.
    """
    blocks = [block.mean() for block in np.array_split(runs, min(BLOCKS, len(runs)))]
    if len(blocks) < 2:
        return BETWEEN_PROCESSES
    within = MEDIAN_FACTOR * np.std(blocks, ddof=1) / np.sqrt(len(blocks)) / np.median(blocks)
    return float(np.hypot(within, BETWEEN_PROCESSES))


def marks_of(cell: Cell) -> list[str]:
    """Return the reasons to trust a cell's figures less."""
    marks = []
    for where, timing in (("host", cell.host), ("device", cell.device)):
        if timing is None:
            continue
        which = f"{where}: " if cell.host and cell.device else ""
        if timing.runs < STANDARD_RUNS or timing.seconds < STANDARD_SECONDS:
            marks.append(f"{which}short, {timing.runs:,} runs in {timing.seconds:.1f} s")
        if timing.variation > VARIATION:
            marks.append(f"{which}unstable, runs vary by {100 * timing.variation:.0f} %")
    if cell.others_cpu_share is not None and cell.others_cpu_share > OTHERS:
        marks.append(f"busy, other processes used {100 * cell.others_cpu_share:.0f} % of the CPU")
    if cell.gpu_throttling:
        marks.append(f"throttled, {cell.gpu_throttling}")
    return marks


def disturbed(cell: Cell) -> bool:
    """Return whether other processes, the GPU's limits or varying runs disturbed a cell; a short one may be right."""
    words = [mark.removeprefix("host: ").removeprefix("device: ") for mark in cell.marks]
    return any(word.startswith(("busy", "throttled", "unstable")) for word in words)
