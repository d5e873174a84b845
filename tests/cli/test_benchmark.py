"""`swav-tf benchmark` and `swav-tf compare`, as a person or a CI job calls them."""

import json
from pathlib import Path

import pytest

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.benchmark.schema import read_benchmark
from tests.cli.command_line import TENSORFLOW, Run, Told, run_without
from tests.evaluate.exported import make_exported

QUICK = ["--seconds", "0.02", "--runs", "5", "--threads", "1", "--quiet"]
AGAIN = [*QUICK, "--batch", "1,4", "--runner", "ort-cpu,keras", "--resume"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export and its benchmark, a.json and a.html, with the cells of one runner skipped."""
    folder = make_exported(tmp_path_factory.mktemp("models") / "tiny")
    arguments = ["benchmark", str(folder), *QUICK, "--batch", "4,1", "--runner", "ort-cpu,keras"]
    arguments += ["--json", str(folder / "a.json"), "--html", str(folder / "a.html")]
    assert run_and_report(swav_tf, arguments) == 0
    return folder


# Bugs caught: options that do not arrive; a table without a cell; JSON that differs from the table.
def test_benchmark(folder: Path, told: Told) -> None:
    benchmark = read_benchmark(folder / "a.json")
    assert (benchmark.settings.runs, benchmark.settings.threads) == (5, 1)
    assert [(c.runner, c.precision, c.batch, c.status) for c in benchmark.cells] == [
        *(("ort-cpu", precision, batch, "ok") for precision in ("fp32", "int8") for batch in (1, 4)),
        *(("keras", "fp32", batch, "skipped") for batch in (1, 4)),
    ]
    assert "Keras runs run folders" in (folder / "a.html").read_text()
    printed = told("benchmark", folder / "model-fp32.onnx", *QUICK, "--batch", "2", "--json", "-")
    [cell] = json.loads(printed)["cells"]
    assert (cell["runner"], cell["batch"], cell["status"]) == ("ort-cpu", 2, "ok")
    left = folder / ".part-0123abcd-a.json"  # by a process that was killed
    left.write_text("{")
    table = told("benchmark", folder, *AGAIN, "--json", folder / "a.json")
    assert not left.exists()
    assert read_benchmark(folder / "a.json").cells == benchmark.cells
    assert sum(line.split()[:1] == ["ort-cpu"] for line in table.splitlines()) == 4
    assert "skipped (Keras runs run folders, and none was given): keras fp32, 2 cells" in table


def test_the_schema_is_printed(told: Told) -> None:
    assert "images_per_second" in json.loads(told("benchmark", "--schema"))["$defs"]["Timing"]["properties"]


# Bugs caught: a gate that accepts a slow or a missing cell, or refuses a fast one.
@pytest.mark.parametrize(
    ("limit", "code", "part"),
    [
        ("ort-cpu:fp32:1=0.001", 0, ""),
        ("ort-cpu:fp32:1=1e12", 1, "must make 1e+12 images/s, but makes"),
        ("ort-cpu:fp32:64=1", 1, "there is no such cell"),
        ("keras:fp32:1=1", 1, "but was skipped"),
        ("ort-cpu:fp32=1", 2, "RUNNER:PRECISION:BATCH"),
        ("ort-cpu:fp32:1=fast", 2, "RUNNER:PRECISION:BATCH"),
    ],
)
def test_fail_below(limit: str, code: int, part: str, folder: Path, run: Run) -> None:
    left = run("benchmark", folder, *AGAIN, "--json", folder / "a.json", "--fail-below", limit)
    assert left.code == code
    assert part in left.err


def test_a_failed_cell_is_exit_code_1(tmp_path: Path, run: Run) -> None:
    wrong = make_exported(tmp_path / "wrong", ("fp32",), wrong=True)
    left = run("benchmark", wrong, *QUICK, "--batch", "1")
    assert left.code == 1
    assert "failed (its features are not the model's" in left.out


def scaled(path: Path, factor: float, **machine: object) -> Path:
    """A copy of a benchmark that is `factor` times as fast, on a quiet machine."""
    document = json.loads(path.read_text())
    for cell in document["cells"]:
        if cell["host"]:
            cell["host"]["images_per_second"] *= factor
            cell["host"]["images_per_second_error"] = 0.02
            cell["marks"] = []
    document["machine"].update(machine)
    copy = path.with_name(f"x{factor}-{len(machine)}.json")
    copy.write_text(json.dumps(document))
    return copy


def test_compare(folder: Path, run: Run, told: Told) -> None:
    a, slower, nearly = (scaled(folder / "a.json", factor) for factor in (1.0, 0.5, 0.93))
    out = told("compare", a, slower)
    assert out.count("slower") == 5
    assert "Verdict: of 4 cells B is faster in 0, slower in 4" in out
    left = run("compare", a, slower, "--fail-below", "0.95", "--json")
    document = json.loads(left.out)
    assert (left.code, len(document["below"])) == (1, 4)
    assert document["cells"][0]["ratio"] == pytest.approx(0.5)
    out = told("compare", a, nearly, "--fail-below", "0.95")
    assert "not surely below 0.95, accepted: ort-cpu:fp32:1" in out


# Bug caught: a gate across two machines, which proves nothing.
def test_compare_of_two_machines(folder: Path, run: Run) -> None:
    a, other = scaled(folder / "a.json", 1.0), scaled(folder / "a.json", 0.5, cpu="Other")
    code, _, err = run("compare", a, other, "--fail-below", "0.9")
    assert code == 2
    assert "B Other" in err
    code, out, _ = run("compare", a, other, "--fail-below", "0.9", "--any-machine")
    assert code == 1
    assert "differs: CPU" in out


# Bugs caught: a traceback, the wrong exit code, or an hour of measuring before the error.
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["benchmark"], "Missing argument 'MODEL...'"),
        (["benchmark", "gone"], "not found"),
        (["benchmark", "FOLDER", "--runner", "ort"], "--runner must be one of"),
        (["benchmark", "FOLDER", "--precision", "fp8"], "--precision must be one of"),
        (["benchmark", "FOLDER", "--batch", "0"], "whole numbers >= 1"),
        (["benchmark", "FOLDER", "--seconds", "0"], "x>0"),
        (["benchmark", "FOLDER", "--resume"], "--json FILE"),
        (["benchmark", "FOLDER", "--seconds", "9", "--max-seconds", "3"], "at least --seconds"),
        (["benchmark", "FOLDER", "--html", "FOLDER/a.json/x.html"], "writable folder"),
        (["compare", "gone.json", "gone.json"], "not found"),
    ],
)
def test_usage_errors(arguments: list[str], part: str, folder: Path, run: Run) -> None:
    left = run(*(word.replace("FOLDER", str(folder)) for word in arguments))
    assert (left.code, left.out) == (2, "")
    assert part in left.err


# Bug caught: a server with the extra `onnx` alone that is asked for TensorFlow, `onnx` or matplotlib.
@pytest.mark.multiprocess
def test_with_the_extra_onnx_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, file = [*TENSORFLOW, "tf2onnx", "onnx", "matplotlib"], tmp_path / "b.json"
    for name in blocked:  # for the processes that measure
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for command in (["benchmark", folder, *QUICK, "--batch", "1", "--json", file], ["compare", file, file]):
        assert run_without(blocked, *command).code == 0
    assert {cell.status for cell in read_benchmark(file).cells} == {"ok"}
    left = run_without(blocked, "benchmark", folder, *QUICK, "--html", tmp_path / "b.html")
    assert left.code == 2
    assert "pip install 'swav-tf[report]'" in left.err
