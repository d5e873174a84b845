"""Cells in fresh processes: planned, measured, skipped, failed and interrupted."""

import signal
import sys

import pytest

from evaluate.benchmark import plan
from evaluate.benchmark.plan import find_models, plan_cells
from evaluate.benchmark.run import death, measure_in_process, run_benchmark
from evaluate.benchmark.schema import NOT_YET
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.nvidia import gpu_state, no_gpu_reason
from tests.evaluate.benchmark.conftest import QUICK
from tests.evaluate.exported import make_exported


# Bugs caught: a missing file replaced by another, the accuracy of another file.
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
            assert cell.host_peak_mib > 1


# === The plan ===


def test_models_that_cannot_be_measured_are_refused(tmp_path, exported) -> None:
    with pytest.raises(UsageError, match="not found"):
        find_models([tmp_path / "gone"])
    with pytest.raises(UsageError, match="has none"):
        find_models([tmp_path])
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"x\.onnx"):
        find_models([tmp_path])
    twin = make_exported(tmp_path / "elsewhere" / "tiny", ("fp32",))
    with pytest.raises(UsageError, match="different names"):
        find_models([exported, twin])
    (twin / "copy.onnx").write_bytes((twin / "model-fp32.onnx").read_bytes())
    with pytest.raises(UsageError, match="one file of a kind and precision"):
        find_models([twin])
    with pytest.raises(UsageError, match="--runner must be one of"):
        plan_cells(find_models([exported]), runners=("ort",), precisions=None, batches=(1,))


# Bugs caught: a GPU's cell measured on the CPU or silently left out; a missing provider without a reason.
def test_a_cell_without_its_gpu_or_provider_is_skipped(exported, measure, monkeypatch) -> None:
    wanted = {"runners": ("ort-cuda", "tensorrt"), "precisions": ("fp32",), "batches": (1,)}
    for name in ("runners", "plan"):
        monkeypatch.setattr(f"evaluate.benchmark.{name}.no_gpu_reason", lambda: "no NVIDIA GPU here")
    cells = measure(exported, **wanted).cells
    assert [(cell.status, cell.reason) for cell in cells] == [("skipped", "no NVIDIA GPU here")] * 2
    monkeypatch.setattr("evaluate.benchmark.runners.no_gpu_reason", lambda: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    [cell] = measure(exported, **wanted | {"runners": ("ort-cuda",)}).cells
    assert cell.status == "skipped"
    assert "CPUExecutionProvider" in cell.reason


def test_a_missing_query_library_is_no_gpu(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in no_gpu_reason()


# Bug caught: memory and clock of a GPU that is not the one measured. (`pynvml` knows nothing of CUDA_VISIBLE_DEVICES.)
@pytest.mark.parametrize(
    ("visible", "mib"), [(None, 0), ("3,1", 3), ("GPU-2", 2), ("GPU-unknown", None), ("-1", None)]
)
def test_the_state_is_of_the_gpu_that_is_visible(nvml, monkeypatch, visible, mib) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_state().memory_mib == mib


# Bugs caught: an int8 graph for another processor; a batch that an engine runs in parts, timed as one.
def test_unsuitable_files_are_skipped(exported, monkeypatch) -> None:
    monkeypatch.setattr(plan, "why_unavailable", lambda runner: None)
    models = find_models([exported])
    [cell] = plan_cells(models, runners=("ort-cuda",), precisions=("int8",), batches=(1,))
    assert "--target tensorrt" in cell.reason
    engine = models[0].model_copy(update={"kind": "engine", "batches": (2, 8)})
    cells = plan_cells([engine], runners=("tensorrt",), precisions=("fp32",), batches=(1, 2, 8, 9))
    assert [cell.reason == NOT_YET for cell in cells] == [False, True, True, False]
    assert "takes 2 to 8 images per call" in cells[0].reason


# === The processes ===


# Bug caught: a runner praised for its speed whose features are wrong.
def test_wrong_features_fail(tmp_path, measure) -> None:
    folder = make_exported(tmp_path / "wrong", ("fp32",), wrong=True)
    [cell] = measure(folder, runners=("ort-cpu",), precisions=None, batches=(2,)).cells
    assert cell.status == "failed"
    assert "-1.0000" in cell.reason


# Bug caught: "File is not a zip file" without the file's name.
def test_a_damaged_reference_is_named(tmp_path, measure) -> None:
    folder = make_exported(tmp_path / "tiny", ("fp32",))
    (folder / "reference.npz").write_bytes(b"no zip file")
    [cell] = measure(folder, runners=("ort-cpu",), precisions=None, batches=(1,)).cells
    assert cell.status == "failed"
    assert f"{folder}/reference.npz must be a reference from `swav-tf export`" in cell.reason


# Bugs caught: an error, a crash or a hang of one cell that ends the benchmark; another package called `evaluate`
# on the caller's PYTHONPATH that answers instead.
def test_errors_of_a_process_are_its_answer(exported, tmp_path, monkeypatch) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models = find_models([exported])
    [cell] = plan_cells(models, runners=("ort-cpu",), precisions=("fp32",), batches=(1,))
    assert measure_in_process(cell, QUICK).status == "ok"
    late = measure_in_process(cell, QUICK, timeout_seconds=0.01)
    assert (late.status, late.reason) == ("failed", "no result after 0.01 s")
    gone = measure_in_process(cell.model_copy(update={"file": str(exported / "gone.onnx")}), QUICK)
    assert gone.status == "failed"
    assert "gone.onnx" in gone.reason
    assert "memory runs out" in death(-signal.SIGKILL, "")
    assert "SIGSEGV" in death(-signal.SIGSEGV, "")


# Bugs caught: Ctrl-C that throws away what was measured; SIGTERM that leaves the process that measures alone.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_has_what_was_measured(exported, number) -> None:
    def ignore(number, frame):
        pass

    models = find_models([exported])
    planned = plan_cells(models, runners=("ort-cpu",), precisions=("fp32",), batches=(1, 2))

    before = signal.signal(signal.SIGTERM, ignore)
    # A shell's jobs in the background ignore Ctrl-C.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = run_benchmark(planned, models, QUICK, after_each=lambda state: signal.raise_signal(number))
        assert signal.getsignal(signal.SIGTERM) is ignore
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    assert not found.complete
    assert [cell.status for cell in found.cells] == ["ok", "skipped"]


# Bug caught: files that nothing here can run vanish from the benchmark without a reason.
def test_files_without_a_runner_have_reasons(measured, monkeypatch) -> None:
    monkeypatch.setattr("evaluate.benchmark.plan.no_gpu_reason", lambda: "no GPU")
    engine = measured.models[0].model_copy(
        update={"kind": "engine", "name": "engines", "file": "engines/x.plan"}
    )
    for models in ([engine], [*measured.models, engine]):
        cells = plan_cells(models, runners=None, precisions=None, batches=(1,))
        of_engine = [cell for cell in cells if cell.file == engine.file]
        assert of_engine
        assert {cell.status for cell in of_engine} == {"skipped"}
        assert NOT_YET not in {cell.reason for cell in of_engine}
    [cell, *_] = plan_cells([engine], runners=None, precisions=("fp16",), batches=(1,))
    assert cell.reason
