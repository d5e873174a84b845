"""The records of a benchmark and its JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.machine import Machine
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.section import Section

FORMAT: Final = 2

Kind = Literal["onnx", "engine", "run"]
Status = Literal["ok", "skipped", "failed"]
NOT_YET: Final = "not measured yet"  # reason of cells that are skipped for the time being


class Settings(Section):
    """How cells are measured."""

    seconds: float = Field(description="minimum time spent on each cell after warm-up")
    runs: int = Field(description="minimum number of runs of each cell")
    max_seconds: float = Field(description="maximum time spent on each cell, whatever the number of runs")
    rounds: int = Field(description="processes that time each cell; all cells are measured once a round")
    threads: int = Field(description="threads that compute a batch on a CPU; 0: one per core")
    cuda_graph: bool = Field(description="whether runs on a GPU are recorded as CUDA graphs where possible")


class Accuracy(Section):
    """The result of `swav-tf verify` for a file, from its parity.json."""

    passed: bool = Field(description="whether the file passed the gate of its precision")
    knn: float | None = Field(
        None, description="top-1 accuracy of k-NN with the file's features, each image by the others, 0 to 1"
    )
    knn_reference: float | None = Field(None, description="the same with Keras' float32 features")
    knn_images: int = Field(0, description="number of labeled images that k-NN classified")
    cosine_min: float | None = Field(None, description="minimum cosine with Keras' features over the images")
    relative_error: float | None = Field(None, description="L2 error relative to Keras, maximum of outputs")

    @property
    def knn_change_points(self) -> float | None:
        """Return the k-NN accuracy minus that of Keras, in percentage points."""
        if self.knn is None or self.knn_reference is None:
            return None
        return 100 * (self.knn - self.knn_reference)


class Model(Section):
    """A file or run folder to measure."""

    name: str = Field(
        description="name of its folder, shared by the files of one export; of a third-party file its own"
    )
    kind: Kind = Field(description="ONNX file, TensorRT engine, or run folder for Keras")
    file: str = Field(description="path as given, or as found in the given folder")
    precision: Precision = Field(description="precision of the backbone's arithmetic")
    bytes: int = Field(description="size of the file, or of the weights in the newest checkpoint")
    file_sha256: str = Field(description="SHA-256 of the file, or of the checkpoint")
    weights_sha256: str = Field(description="SHA-256 of the weights it was made from")
    recipe: str = Field(description="name of the recipe it was trained with; of a third-party file its name")
    step: int = Field(description="optimizer steps it was trained for")
    side: int = Field(description="side of its images, pixels")
    target: str | None = Field(
        None, description="device that an exported int8 file is made for: cpu or tensorrt"
    )
    batches: tuple[int, int] | None = Field(None, description="fewest and most images per call; null: any")
    accuracy: Accuracy | None = Field(None, description="result of `swav-tf verify`; null: not verified")


class Timing(Section):
    """The times of one cell. A run is one call with one batch, timed until its result is available."""

    runs: int = Field(description="number of timed runs")
    seconds: float = Field(description="sum of their times")
    warmup_runs: int = Field(description="earlier runs that are not part of any figure")
    images_per_second: float = Field(description="batch over the median time of a run")
    images_per_second_error: float = Field(description="its relative standard error")
    p50_ms: float = Field(description="median time of a run, milliseconds")
    p90_ms: float | None = Field(None, description="90th percentile; null for fewer than 100 runs")
    p95_ms: float | None = Field(None, description="95th percentile; null for fewer than 200 runs")
    p99_ms: float | None = Field(None, description="99th percentile; null for fewer than 1,000 runs")
    mean_ms: float = Field(description="mean time of a run")
    min_ms: float = Field(description="time of the fastest run")
    max_ms: float = Field(description="time of the slowest run")
    variation: float = Field(description="standard deviation of the runs over their mean")
    rounds_ms: tuple[tuple[float, ...], ...] = Field(description="mean times of 20 blocks of runs, by round")


class Observed(Section):
    """What a cell's process observes apart from time."""

    feature_cosine: float | None = Field(None, description="minimum cosine with Keras' features")
    cuda_graph: bool = Field(False, description="whether its runs were recorded as a CUDA graph")
    host_peak_mib: float | None = Field(None, description="peak memory of its process, MiB")
    host_before_mib: float | None = Field(None, description="memory before the model was opened, MiB")
    gpu_mib: float | None = Field(None, description="increase of GPU memory in use by model and runs, MiB")
    load: float | None = Field(None, description="load average of the minute before, maximum of the rounds")
    others_cpu_share: float | None = Field(None, description="share of all cores used by others, 0 to 1")
    gpu_clock_mhz: float | None = Field(None, description="GPU clock at the end of the timing")
    gpu_throttling: str | None = Field(None, description="the driver's reasons for a lower GPU clock")


class Cell(Observed):
    """One model on one runner in one precision at one batch size."""

    model: str = Field(description="name of the model")
    runner: str = Field(description="what ran it, such as ort-cpu")
    precision: Precision = Field(description="precision of its arithmetic")
    batch: int = Field(ge=1, description="images per call")
    file: str | None = Field(None, description="file or folder that was run")
    status: Status = Field(description="ok; skipped: cannot run here; failed: should have run")
    reason: str | None = Field(None, description="why it was skipped or failed")
    host: Timing | None = Field(None, description="from uint8 images in host memory to arrays in host memory")
    device: Timing | None = Field(None, description="with input and outputs in GPU memory, if separable")
    marks: tuple[str, ...] = Field((), description="reasons to trust the figures less")

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

    format: Literal[2] = Field(FORMAT, description="version of this document's shape")
    created: str = Field(description="start time, UTC")
    complete: bool = Field(description="whether no cell is left to measure")
    settings: Settings = Field(description="how cells were measured")
    machine: Machine = Field(description="where they were measured")
    models: tuple[Model, ...] = Field(description="what was measured")
    cells: tuple[Cell, ...] = Field(description="the measurements")

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


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Benchmark.model_json_schema()}


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write the JSON file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(benchmark.model_dump_json(indent=1) + "\n", encoding="utf-8")
