"""`swav-tf benchmark` and `swav-tf compare`, as a person or a CI job calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.benchmark.report import Extra, report
from evaluate.benchmark.schema import read_benchmark
from tests.evaluate.exported import make_exported

ROOT = Path(__file__).parents[2]
QUICK = ["--seconds", "0.02", "--runs", "5", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and two benchmarks of it, a.json and a.html, with one kind of cell skipped."""
    folder = make_exported(tmp_path_factory.mktemp("models") / "tiny")
    arguments = ["benchmark", str(folder), *QUICK, "--batch", "4,1", "--runner", "ort-cpu,keras"]
    arguments += ["--json", str(folder / "a.json"), "--html", str(folder / "a.html")]
    assert run_and_report(swav_tf, arguments) == 0
    return folder


# Bugs caught: options that do not arrive; a table without a cell; JSON that is not that of the table.
def test_benchmark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = read_benchmark(folder / "a.json")
    assert (benchmark.settings.runs, benchmark.settings.threads) == (5, 1)
    assert [(c.runner, c.precision, c.batch, c.status) for c in benchmark.cells] == [
        ("ort-cpu", "fp32", 1, "ok"),
        ("ort-cpu", "fp32", 4, "ok"),
        ("ort-cpu", "int8", 1, "ok"),
        ("ort-cpu", "int8", 4, "ok"),
        ("keras", "fp32", 1, "skipped"),
        ("keras", "fp32", 4, "skipped"),
    ]
    arguments = ["benchmark", str(folder / "model-fp32.onnx"), *QUICK, "--batch", "2", "--json", "-"]
    assert run_and_report(swav_tf, arguments) == 0
    [cell] = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["runner"], cell["batch"], cell["status"]) == ("ort-cpu", 2, "ok")
    again = ["benchmark", str(folder), *QUICK, "--batch", "1,4", "--runner", "ort-cpu,keras", "--resume"]
    assert run_and_report(swav_tf, [*again, "--json", str(folder / "a.json")]) == 0
    table = capsys.readouterr().out
    assert read_benchmark(folder / "a.json").cells == benchmark.cells
    rows = [line.split() for line in table.splitlines()]
    assert sum(row[:1] == ["ort-cpu"] for row in rows) == 4
    assert "skipped (Keras runs run folders, and none was given): keras fp32, 2 cells" in table


# Bugs caught: a page that asks the network for something, lacks a cell, or takes text for HTML.
def test_the_report_stands_alone(folder: Path) -> None:
    page = (folder / "a.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<svg") >= 3
    for text in (
        "ort-cpu",
        "int8",
        "90.00 %",
        "89.00 %",
        "Keras runs run folders",
        "<dt>p50, p90, p95, p99</dt>",
    ):
        assert text in page
    benchmark = read_benchmark(folder / "a.json")
    hostile = benchmark.machine.model_copy(update={"cpu": "<b>x</b>"})
    page = report(benchmark.model_copy(update={"machine": hostile}), extras=[Extra("A & B", "<i>mine</i>")])
    assert "<b>x</b>" not in page
    assert "A &amp; B" in page
    assert "<i>mine</i>" in page
    empty = benchmark.model_copy(update={"cells": benchmark.cells[-1:]})
    assert "Not measured" in report(empty)


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_report(swav_tf, ["benchmark", "--schema"]) == 0
    assert "images_per_second" in json.loads(capsys.readouterr().out)["$defs"]["Timing"]["properties"]


# Bugs caught: a gate that lets a slow or a missing cell through, or that stops a fast one.
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
def test_fail_below(
    limit: str, code: int, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(folder), *QUICK, "--batch", "1,4", "--runner", "ort-cpu,keras", "--resume"]
    arguments += ["--json", str(folder / "a.json"), "--fail-below", limit]
    assert run_and_report(swav_tf, arguments) == code
    assert part in capsys.readouterr().err


def scaled(path: Path, factor: float, **changes: object) -> Path:
    """A copy of a benchmark that is so many times as fast, to the last run, on a quiet machine."""
    document = json.loads(path.read_text())
    for cell in document["cells"]:
        if cell["host"]:
            cell["host"]["images_per_second"] *= factor
            cell["host"]["images_per_second_error"] = 0.02
            cell["marks"] = []
    document["machine"].update(changes)
    copy = path.with_name(f"x{factor}-{len(changes)}.json")
    copy.write_text(json.dumps(document))
    return copy


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, slower = scaled(folder / "a.json", 1.0), scaled(folder / "a.json", 0.5)
    assert run_and_report(swav_tf, ["compare", str(a), str(slower)]) == 0
    out = capsys.readouterr().out
    assert out.count("slower") == 5
    assert "Verdict: of 4 cells B is faster in 0, slower in 4" in out
    assert run_and_report(swav_tf, ["compare", str(a), str(slower), "--fail-below", "0.95", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["below"]) == 4
    assert document["cells"][0]["ratio"] == pytest.approx(0.5)
    nearly = scaled(folder / "a.json", 0.93)
    assert run_and_report(swav_tf, ["compare", str(a), str(nearly), "--fail-below", "0.95"]) == 0
    assert "not surely below 0.95, and so let through: ort-cpu:fp32:1" in capsys.readouterr().out


# Bug caught: a gate across two machines, which says nothing.
def test_compare_of_two_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, other = scaled(folder / "a.json", 1.0), scaled(folder / "a.json", 0.5, cpu="Other")
    assert run_and_report(swav_tf, ["compare", str(a), str(other), "--fail-below", "0.9"]) == 2
    assert "B Other" in capsys.readouterr().err
    assert (
        run_and_report(swav_tf, ["compare", str(a), str(other), "--fail-below", "0.9", "--any-machine"]) == 1
    )
    assert "differs: CPU" in capsys.readouterr().out


# Bugs caught: a traceback, the wrong exit code, or an hour of measuring before it is told.
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["benchmark"], "Missing argument 'MODEL...'"),
        (["benchmark", "gone"], "not there"),
        (["benchmark", "FOLDER", "--runner", "ort"], "--runner must be of"),
        (["benchmark", "FOLDER", "--precision", "fp8"], "--precision must be of"),
        (["benchmark", "FOLDER", "--batch", "0"], "whole numbers >= 1"),
        (["benchmark", "FOLDER", "--resume"], "--json FILE"),
        (["benchmark", "FOLDER", "--seconds", "9", "--max-seconds", "3"], "at least --seconds"),
        (["benchmark", "FOLDER", "--html", "FOLDER/a.json/x.html"], "can be written"),
        (["compare", "gone.json", "gone.json"], "not there"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_and_report(swav_tf, [word.replace("FOLDER", str(folder)) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.out == ""


# Bug caught: a server with the extra `onnx` alone that is asked for TensorFlow, or for `onnx` itself.
def test_without_tensorflow(folder: Path, tmp_path: Path) -> None:
    for name in ("tensorflow", "keras", "keras_cv", "tf2onnx", "onnx", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    json_file = tmp_path / "b.json"
    arguments = ["benchmark", str(folder), *QUICK, "--batch", "1", "--json", str(json_file)]
    for command in (arguments, ["compare", str(json_file), str(json_file)]):
        run = subprocess.run(
            [sys.executable, "-c", f"from cli.main import main; main({command!r})"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    assert {cell.status for cell in read_benchmark(json_file).cells} == {"ok"}
    blocked = [sys.executable, "-c", "import tensorflow"]
    assert (
        subprocess.run(
            blocked, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True
        ).returncode
        == 1
    )
