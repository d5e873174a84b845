"""Two benchmarks compared: what is noise, and what is not."""

import math

import numpy as np
import pytest

from evaluate.benchmark.compare import compare_benchmarks
from evaluate.benchmark.figures import BETWEEN_PROCESSES, timing_of
from evaluate.benchmark.worker import Samples


def with_speed(benchmark, factor, *, noise=0.0, seed=0):
    """The same benchmark with unmarked cells, all `factor` times as fast, with noise."""
    draw = np.random.default_rng(seed)

    def timing(old):
        ms = old.p50_ms / factor * np.exp(draw.normal(0, noise, 400))
        return timing_of([Samples(ms=tuple(ms), warmup_runs=1)], 1)

    cells = [
        c.model_copy(update={"host": timing(c.host), "marks": ()}) if c.status == "ok" else c
        for c in benchmark.cells
    ]
    return benchmark.model_copy(update={"cells": tuple(cells)})


# Bug caught: a verdict that calls noise a difference, or a difference noise.
@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (1.0, 0.05, "no difference shown"),
        (1.03, 0.05, "no difference shown"),
        (1.2, 0.05, "faster"),
        (0.8, 0.05, "slower"),
        (1.1, 1.5, "no difference shown"),
    ],
)
def test_the_verdict_accounts_for_noise(measured, factor, noise, verdict) -> None:
    a, b = (with_speed(measured, f, noise=noise, seed=seed) for seed, f in enumerate((1.0, factor)))
    assert {cell.verdict for cell in compare_benchmarks(a, b).cells} == {verdict}


def test_the_interval_is_of_both_errors(measured) -> None:
    cell = compare_benchmarks(with_speed(measured, 1.0), with_speed(measured, 1.2)).cells[0]
    assert cell.ratio == pytest.approx(1.2)
    wide = 2.5758 * math.sqrt(2) * BETWEEN_PROCESSES
    assert math.log(cell.high / cell.ratio) == pytest.approx(wide, rel=1e-3)


# Bug caught: a gate that passes because a cell is gone, or fails for noise.
def test_a_gate_on_the_ratio(measured) -> None:
    a, b = with_speed(measured, 1.0), with_speed(measured, 0.8)
    lost = b.model_copy(update={"cells": (b.cells[0].model_copy(update={"status": "failed"}), *b.cells[1:])})
    below = compare_benchmarks(a, lost).below(0.95)
    assert below[0] == "ort-cpu:fp32:1: measured in A, but not in B"
    assert len(below) == 4
    assert compare_benchmarks(a, b).below(0.7) == []
    assert len(compare_benchmarks(a, b).undecided(0.8)) == 4
    assert compare_benchmarks(a, with_speed(measured, 1.3)).below(0.95) == []


# Bug caught: code called slower because other processes used the machine; a CI gate that fails for it.
@pytest.mark.parametrize("mark", ["busy, other processes used 50 % of the CPU", "throttled, power cap"])
def test_disturbed_cells_decide_nothing(measured, mark) -> None:
    a, b = with_speed(measured, 1.0), with_speed(measured, 0.5)
    first, *others = b.cells
    b = b.model_copy(update={"cells": (first.model_copy(update={"marks": ("short", mark)}), *others)})
    for comparison in (compare_benchmarks(a, b), compare_benchmarks(b, with_speed(measured, 0.25))):
        assert [cell.verdict for cell in comparison.cells] == ["disturbed", "slower", "slower", "slower"]
        assert len(comparison.below(0.9)) == 3
        assert comparison.undecided(0.9) == [comparison.cells[0].name]
        assert "1 were disturbed" in comparison.verdict
        assert "geometric mean 0.500" in comparison.verdict


def test_other_machines_and_models_are_reported(measured) -> None:
    machine = measured.machine.model_copy(update={"cpu": "Other", "versions": {"numpy": "0"}})
    models = tuple(model.model_copy(update={"weights_sha256": "b"}) for model in measured.models)
    comparison = compare_benchmarks(
        measured, measured.model_copy(update={"machine": machine, "models": models})
    )
    assert not comparison.comparable
    names = {difference.split(":")[0] for difference in comparison.differences}
    assert {"CPU", "numpy", "weights"} <= names
    assert compare_benchmarks(measured, measured).differences == ()
