"""`benchmark`."""

import json

import pytest

from evaluate.benchmark.schema import Benchmark
from tests.cli.command_line import TENSORFLOW, run_without, succeed
from tests.evaluate.exported import make_exported

QUICK = "--seconds 0.02 --runs 5 --threads 1 --quiet"

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an export and its benchmark, a.json and a.html, in which the cells of one runner are skipped."""
    folder = make_exported(tmp_path_factory.mktemp("models") / "tiny")
    options = f"--batch 4,1 --runner ort-cpu,keras --json {folder}/a.json --html {folder}/a.html"
    succeed(f"benchmark {folder} {QUICK} {options}")
    return folder


# Bugs caught: options without effect; a table that lacks a cell; JSON that differs from the table.
def test_benchmark(folder, output):
    benchmark = Benchmark.model_validate_json((folder / "a.json").read_bytes())
    assert (benchmark.settings.runs, benchmark.settings.threads) == (5, 1)
    assert [(c.runner, c.precision, c.batch, c.status) for c in benchmark.cells] == [
        *(("ort-cpu", precision, batch, "ok") for precision in ("fp32", "int8") for batch in (1, 4)),
        *(("keras", "fp32", batch, "skipped") for batch in (1, 4)),
    ]
    assert "Keras runs run folders" in (folder / "a.html").read_text()
    [cell] = json.loads(
        output(f"benchmark {folder}/model-fp32.onnx {QUICK} --batch 2 --runner ort-cpu --json -")
    )["cells"]
    assert (cell["runner"], cell["batch"], cell["status"]) == ("ort-cpu", 2, "ok")
    left = folder / ".part-0123abcd-b.json"  # by a process that was killed
    left.write_text("{")
    table = output(f"benchmark {folder} {QUICK} --batch 1 --runner ort-cpu,keras --json {folder}/b.json")
    assert not left.exists()
    assert sum(line.split()[:1] == ["ort-cpu"] for line in table.splitlines()) == 2
    assert "skipped (Keras runs run folders, and none was given): keras fp32, 1 cell" in table


# Bugs caught: a gate that accepts a slow or a missing cell, or refuses a fast one.
@pytest.mark.parametrize(
    ("limit", "code", "part"),
    [
        ("ort-cpu:fp32:1=0.001", 0, ""),
        ("ort-cpu:fp32:1=1e12", 1, "must make 1e+12 images/s, but makes"),
        ("ort-cpu:fp32:64=1", 1, "no such cell"),
        ("keras:fp32:1=1", 1, "but was skipped"),
        ("ort-cpu:fp32=1", 2, "RUNNER:PRECISION:BATCH"),
        ("ort-cpu:fp32:1=fast", 2, "RUNNER:PRECISION:BATCH"),
    ],
)
def test_fail_below(limit, code, part, folder, run):
    result = run(
        f"benchmark {folder} {QUICK} --precision fp32 --batch 1 --runner ort-cpu,keras --fail-below {limit}"
    )
    assert result.code == code
    assert part in result.err


def test_a_failed_cell_is_exit_code_1(tmp_path, run):
    wrong = make_exported(tmp_path / "wrong", ("fp32",), wrong=True)
    result = run(f"benchmark {wrong} {QUICK} --batch 1 --runner ort-cpu")
    assert result.code == 1
    assert "failed (its features are not the model's" in result.out


# Bugs caught: one damaged file that keeps the others in its folder from being measured, or is passed over.
def test_a_damaged_file_in_a_folder(tmp_path, run, refused):
    folder = make_exported(tmp_path / "tiny")
    (folder / "model-int8.onnx").write_bytes(b"no graph")
    (folder / "model.plan").write_bytes(b"without its facts")
    options = f"{QUICK} --batch 1 --runner ort-cpu"
    result = run(f"benchmark {folder} {options} --json -")
    assert result.code == 1
    assert [(cell["precision"], cell["status"]) for cell in json.loads(result.out)["cells"]] == [
        ("fp32", "ok")
    ]
    for part in (
        "model-int8.onnx cannot run in",
        "model.plan.json. An engine is",
        "model.plan was not measured",
    ):
        assert part in " ".join(result.err.split())
    refused(f"benchmark {folder}/model-int8.onnx {options}", 1, "cannot run in")
    (folder / "model-fp32.onnx").unlink()
    result = run(f"benchmark {folder} {options} --html {tmp_path}/a.html")
    assert (result.code, "Nothing was measured" in result.err) == (1, True)


# Bugs caught: a traceback, the wrong exit code, or an hour of measuring before the error.
@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("benchmark gone", "not found"),
        ("benchmark {folder} --runner ort", "--runner must be one of"),
        ("benchmark {folder} --precision fp8", "--precision must be one of"),
    ],
)
def test_refusals(line, part, folder, refused):
    refused(line.format(folder=folder), 2, part)


# Bug caught: a server with the extra `onnx` alone that needs TensorFlow, `onnx` or matplotlib.
def test_with_the_extra_onnx_alone(folder, tmp_path, monkeypatch):
    blocked, file = [*TENSORFLOW, "tf2onnx", "onnx", "matplotlib"], tmp_path / "b.json"
    for name in blocked:  # for the processes that measure
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    measure = f"benchmark {folder} {QUICK} --batch 1 --runner ort-cpu --json {file}"
    result = run_without(blocked, measure, f"{measure} --html {tmp_path}/b.html")
    assert result.code == 2
    assert "pip install 'swav-tf[report]'" in result.err
    assert {cell["status"] for cell in json.loads(file.read_bytes())["cells"]} == {"ok"}
