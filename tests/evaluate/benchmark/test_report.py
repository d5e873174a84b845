"""The HTML page of a benchmark."""

import re

import pytest

from evaluate.benchmark.report import write_report
from evaluate.page import check_matplotlib
from swav_tf.plumbing.errors import UsageError


@pytest.fixture
def render(tmp_path):
    def render(benchmark) -> str:
        write_report(tmp_path / "report.html", benchmark)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return render


# Bugs caught: a page that loads something from the network, lacks a cell, or takes text for HTML.
def test_the_page_is_self_contained(measured, render) -> None:
    hostile = measured.machine.model_copy(update={"cpu": "<b>x</b>"})
    page = render(measured.model_copy(update={"machine": hostile}))
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert "#0f0e" not in page  # every placeholder became a color of the page
    assert len(set(re.findall(r"var\(--s\d\)", page))) >= 1
    for text in (
        "ort-cpu",
        "int8",
        "90.00 %",
        "89.00 %",
        "no fp16 .onnx file",
        "<dt>p50, p90, p95, p99</dt>",
    ):
        assert text in page
    assert "<b>x</b>" not in page


def test_a_page_without_a_figure(measured, render) -> None:
    skipped = tuple(cell for cell in measured.cells if cell.status == "skipped")
    page = render(measured.model_copy(update={"cells": skipped, "complete": False}))
    assert "Not measured" in page
    assert "Speed and accuracy" not in page
    assert "interrupted" in page


# Bugs caught: times on the GPU that pass for those from the host, columns that do not match their headings.
def test_both_timings_of_a_gpu(measured, render) -> None:
    [first, *_] = measured.cells
    device = first.host.model_copy(update={"p50_ms": first.host.p50_ms / 3, "images_per_second": 1234567.0})
    cell = first.model_copy(update={"device": device, "gpu_mib": 4321.0, "marks": ()})
    page = render(measured.model_copy(update={"cells": (cell,)}))
    table = page[page.index("<h2>All cells</h2>") :]
    heads = re.findall(r"<th>(.*?)</th>", table[: table.index("</thead>")])
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    rows = [
        dict(zip(heads, re.findall(r"<td>(.*?)</td>", row), strict=True)) for row in body.split("</tr>")[:-1]
    ]
    assert [row["from"] for row in rows] == ["GPU", "host"]
    assert rows[0]["images/s"] == "1,234,567"
    assert {row["GPU MiB"] for row in rows} == {"4,321"}
    assert "<b>1,234,567</b>" in page


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"matplotlib.*swav-tf\[report\]"):
        check_matplotlib()


# Bugs caught: a headline from a disturbed cell, or one model's under the name of another; cells left out with it.
def test_headlines_are_of_undisturbed_cells_of_one_model(measured, render) -> None:
    quiet, busy = (
        tuple(cell.model_copy(update={"marks": marks}) for cell in measured.cells)
        for marks in ((), ("host: unstable, x", "busy, y"))
    )
    measured = measured.model_copy(update={"cells": quiet})
    assert "highest images/s" in render(measured)
    page = render(measured.model_copy(update={"cells": busy}))
    assert "highest images/s" not in page
    assert page.count("<svg") == 3
    assert "<th>p50 ms</th>" in page
    other = measured.models[0].model_copy(update={"name": "second", "recipe": "another recipe"})
    cells = (*measured.cells, measured.cells[0].model_copy(update={"model": "second"}))
    page = render(measured.model_copy(update={"models": (*measured.models, other), "cells": cells}))
    assert "highest images/s" not in page
    assert "second: recipe another recipe" in page
