"""Two benchmarks held against each other: what is noise, and what is not."""

import math

import numpy as np
import pytest

from evaluate.benchmark.compare import compare_benchmarks
from evaluate.benchmark.figures import BETWEEN_PROCESSES, timing_of
from evaluate.benchmark.worker import Samples


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
