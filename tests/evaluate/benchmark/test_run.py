"""Cells in processes of their own: measured, skipped, failed, interrupted, gone on with."""

import os
import signal

import pytest

from evaluate.benchmark import process
from evaluate.benchmark.artifacts import find_artifacts
from evaluate.benchmark.process import ask
from evaluate.benchmark.run import plan_cells, run_benchmark
from evaluate.benchmark.worker import Request
from swav_tf.plumbing.errors import UsageError
from tests.evaluate.benchmark.measuring import QUICK, measure
from tests.evaluate.exported import make_exported


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
def test_what_befalls_a_process_is_its_answer(exported) -> None:
    request = Request(task="cell", runner="ort-cpu", path=str(exported / "gone.onnx"), runs=1, seconds=0.01)
    assert "gone.onnx" in ask(request, timeout_seconds=60).error
    assert ask(request, timeout_seconds=0.01).error == "no result after 0.01 s"
    assert "memory runs out" in process._death(-signal.SIGKILL, "")
    assert "SIGSEGV" in process._death(-signal.SIGSEGV, "")


# Bug caught: a cell that another package called `evaluate` answers, which the caller's PYTHONPATH leads to.
def test_a_process_runs_our_own_package(exported, tmp_path, monkeypatch) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = str(exported / "model-fp32.onnx")
    request = Request(task="cell", runner="ort-cpu", path=path, runs=1, seconds=0.01, threads=1)
    assert ask(request, timeout_seconds=60).error is None


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
