"""The JSON of a benchmark: what `swav-tf benchmark --json` writes and `swav-tf compare` reads. No TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.machine import Machine
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.pretraining import Section

FORMAT: Final = 1

Kind = Literal["onnx", "engine", "run"]
Status = Literal["ok", "skipped", "failed"]


class Settings(Section):
    """How it was measured."""

    seconds: float = Field(description="least time spent on each cell, after warm-up")
    runs: int = Field(description="and at least so many runs")
    max_seconds: float = Field(description="but no longer than this, whatever the runs")
    rounds: int = Field(description="processes, one after the other over all cells, that timed each cell")
    threads: int = Field(description="that computed a batch on a CPU; 0: as many as there are cores")
    cuda_graph: bool = Field(description="whether runners that can recorded their launches as a CUDA graph")


class Accuracy(Section):
    """What `swav-tf verify` found of a file, from the parity.json beside it."""

    passed: bool = Field(description="whether the file kept to the gate of its precision")
    knn: float | None = Field(None, description="top-1 of k-NN with its features, 0 to 1")
    knn_reference: float | None = Field(None, description="the same with Keras' float32 features")
    knn_images: int = Field(0, description="labelled images that the k-NN is of")
    cosine_min: float | None = Field(None, description="least cosine of an image's features with Keras'")
    relative_error: float | None = Field(
        None, description="greatest over the outputs: L2 norm of the difference over that of Keras'"
    )

    @property
    def knn_change_points(self) -> float | None:
        """Percentage points of k-NN accuracy that the file is better by than Keras."""
        if self.knn is None or self.knn_reference is None:
            return None
        return 100 * (self.knn - self.knn_reference)


class Model(Section):
    """A file, or a run folder."""

    name: str = Field(description="of the folder that it lies in: what cells of one model share")
    kind: Kind = Field(description="ONNX file, TensorRT engine, or run folder for Keras")
    file: str = Field(description="as it was given, or found in the folder")
    precision: Precision = Field(description="of the backbone's arithmetic")
    bytes: int = Field(description="size of the file, or of the newest checkpoint's weights")
    file_sha256: str = Field(description="of the file's content, or of the checkpoint")
    weights_sha256: str = Field(description="of the weights that it was made from")
    recipe: str = Field(description="that it was trained by")
    step: int = Field(description="optimiser steps that it was trained for")
    side: int = Field(description="of its images, pixels")
    gflop_per_image: float | None = Field(
        None, description="1e9 operations an image, two for each product; convolutions and matrix products"
    )
    accuracy: Accuracy | None = Field(None, description="by `swav-tf verify`; null: it was not verified")


class Timing(Section):
    """The times of one cell; a run is one call with one batch, timed until its result is there."""

    runs: int = Field(description="that were timed")
    seconds: float = Field(description="that they took together")
    warmup_runs: int = Field(description="that came before and are not in any figure")
    images_per_second: float = Field(description="batch over the median time of a run")
    images_per_second_error: float = Field(
        description="standard error of that, as a share: from blocks of runs, and from process to process"
    )
    p50_ms: float = Field(description="median time of a run, milliseconds; of fewer than 20 runs too")
    p90_ms: float | None = Field(None, description="90 % of runs were quicker; needs 100 runs")
    p95_ms: float | None = Field(None, description="95 % of runs were quicker; needs 200 runs")
    p99_ms: float | None = Field(None, description="99 % of runs were quicker; needs 1,000 runs")
    mean_ms: float = Field(description="mean time of a run")
    min_ms: float = Field(description="the quickest run")
    max_ms: float = Field(description="the slowest run")
    variation: float = Field(description="coefficient of variation: standard deviation over mean of the runs")
    rounds_ms: tuple[tuple[float, ...], ...] = Field(
        description="for each process, the mean times of up to 20 consecutive blocks of runs"
    )


class Memory(Section):
    """What a cell's process held."""

    host_peak_mib: float | None = Field(None, description="most memory of the process at once, MiB")
    host_before_mib: float | None = Field(
        None, description="its memory before the model was opened: interpreter and libraries, MiB"
    )
    gpu_mib: float | None = Field(
        None, description="GPU memory in use more than before the model was opened, MiB"
    )


class Conditions(Section):
    """What went on beside."""

    load: float | None = Field(None, description="processes that wanted to run, mean of a minute, before")
    others_cpu_share: float | None = Field(
        None, description="share of all cores that other processes took while it was timed, 0 to 1"
    )
    gpu_clock_mhz: float | None = Field(None, description="at the end of the timing")
    gpu_throttling: str | None = Field(
        None,
        description="nvidia-smi's reasons for a lower clock at the end of the timing, bits in hexadecimal",
    )


class Explanation(Section):
    """What a cell's time goes into."""

    bound: Literal["transfer", "launch", "memory", "compute"] | None = Field(
        None,
        description="transfer or launch: at least half of the time; else which roof is the lower one; null: not known",
    )
    transfer_share: float | None = Field(
        None, description="of copies between host and GPU, in the host-to-host time, 0 to 1"
    )
    fixed_share: float | None = Field(
        None, description="of what a call costs whatever the batch, by a line through the batches, 0 to 1"
    )
    roofline_share: float | None = Field(
        None, description="images/s over what the machine's measured arithmetic and memory would allow"
    )


class Cell(Section):
    """One model by one runner in one precision at one batch size."""

    model: str = Field(description="name of the model")
    runner: str = Field(description="who ran it")
    precision: Precision = Field(description="of its arithmetic")
    batch: int = Field(ge=1, description="images in a call")
    file: str | None = Field(None, description="that was run")
    status: Status = Field(description="ok; skipped: it could not be here; failed: it should have been")
    reason: str | None = Field(None, description="why it was skipped or failed")
    host: Timing | None = Field(
        None, description="from uint8 images in the host's memory to arrays in the host's memory"
    )
    device: Timing | None = Field(
        None, description="input and outputs stay in the GPU's memory; null where they are not apart"
    )
    memory: Memory | None = Field(None, description="of its process, the first round's")
    conditions: Conditions | None = Field(None, description="of the worst round")
    explanation: Explanation | None = Field(None, description="what its time goes into")
    feature_cosine: float | None = Field(
        None, description="least cosine of its features with Keras', for images of reference.npz"
    )
    cuda_graph: bool = Field(False, description="whether its launches were recorded as a CUDA graph")
    marks: tuple[str, ...] = Field(
        (), description="why its figures deserve less trust; empty: nothing was seen"
    )

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What is equal in two benchmarks of the same cell."""
        return (self.model, self.runner, self.precision, self.batch)

    @property
    def label(self) -> str:
        """As `--fail-below` and messages name it."""
        return f"{self.runner}:{self.precision}:{self.batch}"

    @property
    def best(self) -> Timing | None:
        """Device-resident where there is such a time, else host-to-host; None of a cell that did not go well."""
        return (self.device or self.host) if self.status == "ok" else None


class Peak(Section):
    """A limit of the machine, measured."""

    device: Literal["cpu", "cuda"] = Field(description="where")
    precision: Precision = Field(description="of the factors")
    gflops: float = Field(description="1e9 operations a second of a large matrix product")
    gbytes: float = Field(description="1e9 bytes a second that a large element-wise maximum read and wrote")


class Benchmark(Section):
    """All of it."""

    format: Literal[1] = Field(FORMAT, description="of this document")
    created: str = Field(description="when it began, UTC")
    complete: bool = Field(description="whether every cell had its turn")
    settings: Settings = Field(description="how it was measured")
    machine: Machine = Field(description="where")
    peaks: tuple[Peak, ...] = Field((), description="the machine's limits")
    models: tuple[Model, ...] = Field(description="what was measured")
    cells: tuple[Cell, ...] = Field(description="the figures")

    @property
    def several_models(self) -> bool:
        """Whether a cell's runner, precision and batch do not tell yet which it is."""
        return len({cell.model for cell in self.cells}) > 1

    def accuracy_of(self, cell: Cell) -> Accuracy | None:
        """That of the file that a cell runs; None where it was not verified."""
        return next((model.accuracy for model in self.models if model.file == cell.file), None)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Benchmark.model_json_schema()}


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Writes it, whole or not at all.

    Raises:
        DataError: the disk refuses.
    """
    with atomic_write(path) as partial:
        partial.write_text(benchmark.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_benchmark(path: Path) -> Benchmark:
    """Reads it.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, or of another format.
    """
    if not path.is_file():
        raise UsageError(
            f"A benchmark must be a file by `swav-tf benchmark --json`. Received: {path}, which is not there."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be JSON by `swav-tf benchmark`; it cannot be read: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise DataError(f"{path} must be a benchmark of format {FORMAT}. Received: format {found}.")
    try:
        return Benchmark.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} must be a benchmark of format {FORMAT}. Received: {error.error_count()} values that do not "
            f"fit, the first: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from error
