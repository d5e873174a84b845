"""The page of a benchmark."""

import re

from evaluate.benchmark.report.document import Extra, report


# Bugs caught: a page that asks the network for something, lacks a cell, or takes text for HTML.
def test_the_page_stands_alone(measured) -> None:
    hostile = measured.machine.model_copy(update={"cpu": "<b>x</b>"})
    page = report(measured.model_copy(update={"machine": hostile}), extras=[Extra("A & B", "<i>mine</i>")])
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<svg") >= 3
    assert page.count("<polyline") == 2  # fp32 and int8
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
    assert "A &amp; B" in page
    assert "<i>mine</i>" in page


def test_a_page_without_a_figure(measured) -> None:
    skipped = tuple(cell for cell in measured.cells if cell.status == "skipped")
    page = report(measured.model_copy(update={"cells": skipped}))
    assert "Not measured" in page
    assert "Speed and accuracy" not in page


# Bugs caught: times on the GPU that pass for those from the host, columns beside their headings.
def test_both_times_of_a_gpu(measured) -> None:
    [first, *_] = measured.cells
    device = first.host.model_copy(update={"p50_ms": first.host.p50_ms / 2, "images_per_second": 1234567.0})
    memory = first.memory.model_copy(update={"gpu_mib": 4321.0})
    cell = first.model_copy(update={"device": device, "memory": memory, "marks": ()})
    page = report(measured.model_copy(update={"cells": (cell,)}))
    table = page[page.index("<h2>All cells</h2>") :]
    heads = re.findall(r"<th>(.*?)</th>", table[: table.index("</thead>")])
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    rows = [
        dict(zip(heads, re.findall(r"<td>(.*?)</td>", row), strict=True)) for row in body.split("</tr>")[:-1]
    ]
    assert [row["from"] for row in rows] == ["GPU", "host"]
    assert rows[0]["images/s"] == "1,234,567"
    assert {row["GPU MiB"] for row in rows} == {"4,321"}
    assert rows[1]["bound by"] == "-"
    assert "<b>1,234,567</b>" in page
