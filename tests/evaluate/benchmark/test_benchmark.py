"""Cells in processes of their own: timing, skipping, failing, going on, comparing."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluate.benchmark import run as module
from evaluate.benchmark.compare import compare_benchmarks
from evaluate.benchmark.plan import find_artifacts, plan_cells
from evaluate.benchmark.run import BETWEEN_PROCESSES, ask, cell_of, marks_of, run_benchmark, timing_of
from evaluate.benchmark.schema import (
    Benchmark,
    Cell,
    Conditions,
    Settings,
    json_schema,
    read_benchmark,
    write_benchmark,
)
from evaluate.benchmark.torch_peer import network_of
from evaluate.benchmark.trtexec import compute_times
from evaluate.benchmark.worker import Answer, Request, Samples, time_runs
from swav_tf.errors import DataError, UsageError
from tests.evaluate.exported import make_exported

QUICK = Settings(seconds=0.02, runs=5, max_seconds=5, rounds=1, threads=1, cuda_graph=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return make_exported(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def measured(exported) -> Benchmark:
    """One benchmark for the tests that only look at it."""
    return measure(exported, runners=("ort-cpu",), precisions=("fp32", "fp16", "int8"), batches=(1, 4))


def measure(folder, *, settings=QUICK, **wanted) -> Benchmark:
    artifacts = find_artifacts([folder])
    return run_benchmark(plan_cells(artifacts, **wanted), artifacts, settings, timeout_seconds=60)


# === Timing ===


class Clock:
    """Each run takes the next of some times."""

    def __init__(self, seconds):
        self.now, self.times, self.runs = 0.0, list(seconds), 0

    def __call__(self):
        return self.now

    def run(self):
        self.now += self.times[min(self.runs, len(self.times) - 1)]
        self.runs += 1


# Bugs caught: warm-up runs among the samples, an end before the time or the runs are over, or never.
def test_timing_runs() -> None:
    clock = Clock([5.0, 1.0, 1.0] + [0.5] * 50)
    samples, warmup = time_runs(clock.run, seconds=3, runs=10, max_seconds=100, clock=clock)
    assert warmup == 3
    assert samples == [500.0] * 10
    assert len(time_runs(clock.run, seconds=30, runs=10, max_seconds=100, clock=clock)[0]) == 60
    slow = Clock([20.0])
    samples, warmup = time_runs(slow.run, seconds=3, runs=100, max_seconds=60, clock=slow)
    assert (len(samples), warmup) == (3, 1)


# Bugs caught: images/s by the mean of the latencies, a p99 of few runs, rounds thrown together.
def test_figures_of_samples() -> None:
    draw = np.random.default_rng(0)
    rounds = [Samples(ms=tuple(draw.gamma(9, size, 300)), warmup_runs=4) for size in (1.0, 1.1)]
    timing = timing_of(rounds, 8)
    runs = np.concatenate([samples.ms for samples in rounds])
    assert (timing.runs, timing.warmup_runs) == (600, 8)
    assert timing.images_per_second == pytest.approx(8000 / np.median(runs))
    assert timing.p95_ms == pytest.approx(np.percentile(runs, 95))
    assert timing.p99_ms is None
    assert [len(blocks) for blocks in timing.rounds_ms] == [20, 20]
    assert timing_of([], 8) is None


@pytest.mark.parametrize(
    ("seconds", "runs", "spread", "conditions", "marks"),
    [
        (3.1, 100, 0.05, {"others_cpu_share": 0.05}, []),
        (2.9, 100, 0.05, {}, ["short"]),
        (3.1, 99, 0.05, {}, ["short"]),
        (3.1, 100, 0.2, {}, ["unstable"]),
        (3.1, 100, 0.05, {"others_cpu_share": 0.3, "gpu_throttling": "0x4"}, ["busy", "throttled"]),
    ],
)
def test_marks(seconds, runs, spread, conditions, marks) -> None:
    times = 1000 * seconds / runs * (1 + spread * np.where(np.arange(runs) % 2, 1, -1))
    timing = timing_of([Samples(ms=tuple(times), warmup_runs=1)], 1)
    cell = Cell(
        model="m", runner="ort-cpu", precision="fp32", batch=1, status="ok", host=timing,
        conditions=Conditions(**conditions),
    )  # fmt: skip
    assert [mark.split(",")[0] for mark in marks_of(cell)] == marks


# === Cells ===


# Bugs caught: a file that is not there taken for another, accuracy of another file, no explanation.
def test_cells_of_a_folder(measured, exported) -> None:
    states = {cell.key[2:]: cell.status for cell in measured.cells}
    assert states == {
        ("fp32", 1): "ok", ("fp32", 4): "ok", ("fp16", 1): "skipped", ("fp16", 4): "skipped",
        ("int8", 1): "ok", ("int8", 4): "ok",
    }  # fmt: skip
    assert measured.complete
    skipped = next(cell for cell in measured.cells if cell.status == "skipped")
    assert "no fp16 .onnx file" in skipped.reason
    accuracies = {model.precision: model.accuracy.knn for model in measured.models}
    assert accuracies == {"fp32": 0.9, "int8": pytest.approx(0.89)}
    for cell in measured.cells:
        if cell.status == "ok":
            assert cell.file == str(exported / f"model-{cell.precision}.onnx")
            assert cell.host.runs >= QUICK.runs
            assert cell.feature_cosine == pytest.approx(1, abs=1e-5)
            assert cell.memory.host_peak_mib > cell.memory.host_before_mib > 1
            assert cell.explanation.fixed_share is not None
            assert cell.explanation.roofline_share > 0
    assert measured.models[0].gflop_per_image == pytest.approx(2 * 16 * 6 * 27 / 1e9, rel=1e-3)


def test_the_document_fits_its_schema_and_is_read_back(measured, tmp_path) -> None:
    write_benchmark(tmp_path / "b.json", measured)
    assert read_benchmark(tmp_path / "b.json") == measured
    schema = json_schema()
    document = json.loads((tmp_path / "b.json").read_text())
    assert set(document) == set(schema["properties"])
    assert set(document["cells"][0]) == set(schema["$defs"]["Cell"]["properties"])
    undescribed = [
        f"{name}.{key}"
        for name, part in {**schema["$defs"], "Benchmark": schema}.items()
        for key, value in part["properties"].items()
        if "description" not in value
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "format None"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "do not fit"),
    ],
)
def test_other_files_are_no_benchmarks(text, part, tmp_path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(DataError, match=part):
        read_benchmark(tmp_path / "b.json")
    with pytest.raises(UsageError, match="not there"):
        read_benchmark(tmp_path / "c.json")


# Bug caught: a GPU's cell that runs on the CPU where there is no GPU, or is left out without a word.
def test_a_gpu_cell_without_a_gpu_is_skipped(exported, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = measure(exported, runners=("ort-cuda", "tensorrt", "trtexec"), precisions=("fp32",), batches=(1,))
    assert [(cell.status, cell.reason.split(" (")[0]) for cell in found.cells] == [
        ("skipped", "no NVIDIA GPU here")
    ] * 3


def test_a_gpu_provider_that_onnxruntime_lacks_is_skipped_with_the_reason(
    exported, monkeypatch, tmp_path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'Some GPU, 1, 1, 1, 1, 1' | cut -d, -f1-$(echo $1 | tr -cd , | wc -c | xargs expr 1 +)\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    [cell] = measure(exported, runners=("ort-cuda",), precisions=("fp32",), batches=(1,)).cells
    assert cell.status == "skipped"
    assert "CPUExecutionProvider" in cell.reason


# Bug caught: a runner whose features are wrong that is praised for its speed.
def test_wrong_features_fail(tmp_path) -> None:
    folder = make_exported(tmp_path / "wrong", ("fp32",), wrong=True)
    [cell] = measure(folder, runners=("ort-cpu",), precisions=None, batches=(2,)).cells
    assert cell.status == "failed"
    assert "-1.0000" in cell.reason


# Bug caught: an error, a crash or a hang in one cell that ends the benchmark.
def test_what_befalls_a_process_is_its_cells_failure(exported, monkeypatch) -> None:
    request = Request(task="cell", runner="ort-cpu", path=str(exported / "gone.onnx"), runs=1, seconds=0.01)
    assert "gone.onnx" in ask(request, timeout_seconds=60).error
    assert ask(request, timeout_seconds=0.01).error == "no result after 0.01 s"
    answer = Answer(error="it broke")
    waiting = Cell(model="m", runner="ort-cpu", precision="fp32", batch=1, status="skipped", reason="")
    cell = cell_of(waiting, [answer], QUICK)
    assert (cell.status, cell.reason) == ("failed", "it broke")
    assert "memory runs out" in module._death(-signal.SIGKILL, "")
    assert "SIGSEGV" in module._death(-signal.SIGSEGV, "")


# Bug caught: Ctrl-C that throws away what was measured.
def test_an_interrupted_benchmark_keeps_what_it_has_and_goes_on(exported, tmp_path) -> None:
    artifacts = find_artifacts([exported])
    planned = plan_cells(artifacts, runners=("ort-cpu",), precisions=("fp32",), batches=(1, 2))
    asked = []

    def tell(cell, done, total):
        asked.append(cell.batch)
        if cell.batch == 2 and len(asked) == 2:
            raise KeyboardInterrupt

    first = run_benchmark(planned, artifacts, QUICK, timeout_seconds=60, tell=tell)
    assert not first.complete
    assert [cell.status for cell in first.cells] == ["ok", "skipped"]
    second = run_benchmark(planned, artifacts, QUICK, timeout_seconds=60, kept=first, tell=tell)
    assert asked == [1, 2, 2]
    assert second.complete
    assert second.cells[0].host == first.cells[0].host
    other = QUICK.model_copy(update={"runs": 6})
    with pytest.raises(UsageError, match="how it is measured"):
        run_benchmark(planned, artifacts, other, timeout_seconds=60, kept=first)


def test_what_is_no_model_is_told(tmp_path, exported) -> None:
    with pytest.raises(UsageError, match="not there"):
        find_artifacts([tmp_path / "gone"])
    with pytest.raises(UsageError, match="holds none"):
        find_artifacts([tmp_path])
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"x\.onnx"):
        find_artifacts([tmp_path])
    twin = make_exported(tmp_path / "elsewhere" / "tiny", ("fp32",))
    with pytest.raises(UsageError, match="must differ"):
        find_artifacts([exported, twin])
    (twin / "copy.onnx").write_bytes((twin / "model-fp32.onnx").read_bytes())
    with pytest.raises(UsageError, match="one file of a kind and precision"):
        find_artifacts([twin])
    with pytest.raises(UsageError, match="--runner must be of"):
        plan_cells(find_artifacts([exported]), runners=("ort",), precisions=None, batches=(1,))


def test_int8_for_another_processor_is_skipped(exported, monkeypatch) -> None:
    monkeypatch.setattr("evaluate.benchmark.plan.why_not", lambda runner: None)
    [planned] = plan_cells(
        find_artifacts([exported]), runners=("ort-cuda",), precisions=("int8",), batches=(1,)
    )
    assert "--target tensorrt" in planned.cell.reason
    assert planned.artifact is None


# Bug caught: a batch that an engine runs in parts, timed as if it were one.
def test_a_batch_beyond_an_engines_profile_is_skipped(exported, monkeypatch) -> None:
    monkeypatch.setattr("evaluate.benchmark.plan.why_not", lambda runner: None)
    engine = replace(find_artifacts([exported / "model-fp32.onnx"])[0], kind="engine", batches=(2, 8))
    planned = plan_cells([engine], runners=("tensorrt",), precisions=("fp32",), batches=(1, 2, 8, 9))
    assert [one.artifact is not None for one in planned] == [False, True, True, False]
    assert "takes 2 to 8 images at once" in planned[0].cell.reason


# === Peers ===


# Bug caught: a peer of another network: uneven padding, weights, normalisation.
def test_pytorch_computes_the_same_features(exported) -> None:
    torch = pytest.importorskip("torch")
    from evaluate.runners.onnx_runner import OnnxRunner

    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    wanted = OnnxRunner(exported / "model-fp32.onnx").run(images)["features"]
    with torch.inference_mode():
        found = network_of(exported / "model-fp32.onnx")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_times_of_trtexec() -> None:
    assert compute_times([{"computeMs": 1.5, "latencyMs": 9}, {"computeMs": 2}]) == [1.5, 2.0]
    with pytest.raises(DataError):
        compute_times([{"latencyMs": 9}])


# === Comparing ===


def with_speed(benchmark, factor, *, noise=0.0, seed=0, rounds=1):
    """The same benchmark, its times of blocks divided by a factor, with noise."""
    draw = np.random.default_rng(seed)

    def timing(old):
        samples = [
            Samples(ms=tuple(old.p50_ms / factor * np.exp(draw.normal(0, noise, 400))), warmup_runs=1)
            for _ in range(rounds)
        ]
        return timing_of(samples, 1)

    cells = [
        c.model_copy(update={"host": timing(c.host), "marks": ()}) if c.status == "ok" else c
        for c in benchmark.cells
    ]
    return benchmark.model_copy(update={"cells": tuple(cells)})


# Bug caught: a verdict that calls noise a difference, or a difference noise.
def test_the_verdict_knows_the_noise(measured) -> None:
    a = with_speed(measured, 1.0, noise=0.05, seed=1)
    for factor, verdict in (
        (1.0, "no difference shown"),
        (1.03, "no difference shown"),
        (1.2, "faster"),
        (0.8, "slower"),
    ):
        comparison = compare_benchmarks(a, with_speed(measured, factor, noise=0.05, seed=2))
        assert {cell.verdict for cell in comparison.cells} == {verdict}
    loud = compare_benchmarks(
        with_speed(measured, 1.0, noise=1.5, seed=3), with_speed(measured, 1.1, noise=1.5, seed=4)
    )
    assert {cell.verdict for cell in loud.cells} == {"no difference shown"}
    cell = compare_benchmarks(with_speed(a, 1.0), with_speed(a, 1.2)).cells[0]
    assert cell.ratio == pytest.approx(1.2 * cell.a / cell.a)
    assert math.log(cell.high / cell.ratio) == pytest.approx(
        2.5758 * math.sqrt(2) * BETWEEN_PROCESSES, rel=1e-3
    )


# Bug caught: a gate that passes because a cell is gone, or fails for noise.
def test_a_gate_on_the_ratio(measured) -> None:
    a = with_speed(measured, 1.0)
    b = with_speed(measured, 0.8)
    lost = b.model_copy(update={"cells": (b.cells[0].model_copy(update={"status": "failed"}), *b.cells[1:])})
    comparison = compare_benchmarks(a, lost)
    below = comparison.below(0.95)
    assert below[0] == "ort-cpu:fp32:1: measured in A, but not in B"
    assert len(below) == 4
    assert compare_benchmarks(a, b).below(0.7) == []
    assert len(compare_benchmarks(a, b).undecided(0.8)) == 4
    assert compare_benchmarks(a, with_speed(measured, 1.3)).below(0.95) == []


# Bug caught: a machine that others used called slower code; a gate of continuous integration that fails for it.
@pytest.mark.parametrize("mark", ["busy, others took 50 % of the CPU", "throttled, nvidia-smi says heat"])
def test_disturbed_cells_say_nothing(measured, mark) -> None:
    a, b = with_speed(measured, 1.0), with_speed(measured, 0.5)
    first, *others = b.cells
    b = b.model_copy(update={"cells": (first.model_copy(update={"marks": ("short", mark)}), *others)})
    for comparison in (compare_benchmarks(a, b), compare_benchmarks(b, with_speed(measured, 0.25))):
        assert [cell.verdict for cell in comparison.cells] == ["disturbed", "slower", "slower", "slower"]
        assert len(comparison.below(0.9)) == 3
        assert comparison.undecided(0.9) == [comparison.cells[0].name]
        assert "1 were disturbed" in comparison.verdict
        assert "0.500 of A's speed" in comparison.verdict


def test_other_machines_and_models_are_told(measured) -> None:
    machine = measured.machine.model_copy(update={"cpu": "Other", "versions": {"numpy": "0"}})
    models = tuple(model.model_copy(update={"weights_sha256": "b"}) for model in measured.models)
    comparison = compare_benchmarks(
        measured, measured.model_copy(update={"machine": machine, "models": models})
    )
    assert not comparison.comparable
    text = "; ".join(comparison.differences)
    assert "B Other" in text
    assert "numpy" in text
    assert "weights" in text
