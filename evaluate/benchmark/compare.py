"""Two benchmarks held against each other, by a verdict that knows the noise. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from evaluate.benchmark.schema import Benchmark, Cell, Timing

Verdict = Literal[
    "faster", "slower", "no difference shown", "disturbed", "only in A", "only in B", "not measured"
]

DISTURBED: Final = ("busy", "throttled")  # marks of cells whose spread does not tell how wrong they are
SURE: Final = 2.5758  # standard errors: 99 % of a normal distribution lie within


@dataclass(frozen=True)
class ComparedCell:
    """One cell of both.

    Attributes:
        name: runner, precision and batch, and the model where there are several.
        a: images/s in A; None: not measured.
        b: images/s in B.
        ratio: b / a.
        low: the ratio is above this, 99 % sure.
        high: and below this.
        verdict: faster or slower only where 1 lies outside of that; disturbed where either was measured
            while other processes used the machine, or its GPU was throttled.
    """

    name: str
    a: float | None
    b: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All cells.

    Attributes:
        cells: in the order of A, then those that only B has.
        differences: what else differs, in words: machine, versions, settings, model, accuracy.
        comparable: whether both are of the same processor and GPU.
        verdict: one sentence.
    """

    cells: tuple[ComparedCell, ...]
    differences: tuple[str, ...]
    comparable: bool
    verdict: str

    def below(self, ratio: float) -> list[str]:
        """Why B is not fit, a line each: cells surely slower than this times A, and cells that it lost."""
        lines = []
        for cell in self.cells:
            if cell.verdict in ("only in A", "not measured") and cell.a is not None:
                lines.append(f"{cell.name}: measured in A, but not in B")
            elif cell.verdict == "disturbed":
                continue
            elif cell.high is not None and cell.ratio is not None and cell.high < ratio:
                lines.append(
                    f"{cell.name}: {cell.ratio:.3f} of A's speed (at most {cell.high:.3f}), must be {ratio:g}"
                )
        return lines

    def undecided(self, ratio: float) -> list[str]:
        """Cells for which the noise, or what disturbed them, leaves open on which side of a ratio they are."""
        return [
            cell.name
            for cell in self.cells
            if cell.verdict == "disturbed"
            or (cell.low is not None and cell.high is not None and cell.low < ratio <= cell.high)
        ]


def compare_benchmarks(a: Benchmark, b: Benchmark) -> Comparison:
    """B against A, cell by cell.

    Cells are the same by model, runner, precision and batch; where each has one model, its name does not matter.
    """
    one_each = len({cell.model for cell in a.cells}) == 1 == len({cell.model for cell in b.cells})
    in_a, in_b = ({_key(cell, one_each): cell for cell in each.cells} for each in (a, b))
    cells = [
        _compared(
            " ".join(filter(None, [key[0], f"{key[1]}:{key[2]}:{key[3]}"])), in_a.get(key), in_b.get(key)
        )
        for key in [*in_a, *(key for key in in_b if key not in in_a)]
    ]
    shown = [cell for cell in cells if cell.a is not None or cell.b is not None]
    machine = _machine_differences(a, b)
    return Comparison(tuple(shown), (*machine, *_other_differences(a, b)), not machine, _sentence(shown))


def ratio_interval(a: Timing, b: Timing) -> tuple[float, float, float]:
    """B's speed over A's, and the bounds between which it is, 99 % sure.

    The relative errors of both add as independent ones; the logarithm of the ratio is taken as normal.
    """
    ratio = b.images_per_second / a.images_per_second
    factor = math.exp(SURE * math.hypot(a.images_per_second_error, b.images_per_second_error))
    return ratio, ratio / factor, ratio * factor


def _key(cell: Cell, one_each: bool) -> tuple[str, str, str, int]:
    return ("" if one_each else cell.model, *cell.key[1:])


def _compared(name: str, a: Cell | None, b: Cell | None) -> ComparedCell:
    old, new = (None if cell is None else cell.best for cell in (a, b))
    speed_a, speed_b = (timing.images_per_second if timing else None for timing in (old, new))
    if old is None or new is None:
        verdict: Verdict = "only in A" if old else "only in B" if new else "not measured"
        return ComparedCell(name, speed_a, speed_b, None, None, None, verdict)
    ratio, low, high = ratio_interval(old, new)
    if any(mark.startswith(DISTURBED) for cell in (a, b) if cell is not None for mark in cell.marks):
        verdict = "disturbed"
    else:
        verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference shown"
    return ComparedCell(name, speed_a, speed_b, ratio, low, high, verdict)


def _machine_differences(a: Benchmark, b: Benchmark) -> list[str]:
    """Of the kind that makes speeds incomparable."""
    pairs = {
        "CPU": (a.machine.cpu, b.machine.cpu),
        "cores": (a.machine.cores, b.machine.cores),
        "GPU": tuple(", ".join(gpu.name for gpu in each.machine.gpus) or "none" for each in (a, b)),
        "threads": (a.settings.threads, b.settings.threads),
    }
    return [f"{name}: A {old}, B {new}" for name, (old, new) in pairs.items() if old != new]


def _other_differences(a: Benchmark, b: Benchmark) -> list[str]:
    found = []
    packages = sorted({*a.machine.versions, *b.machine.versions})
    for package in packages:
        old, new = (each.machine.versions.get(package, "not installed") for each in (a, b))
        if old != new:
            found.append(f"{package}: A {old}, B {new}")
    drivers = [", ".join(sorted({gpu.driver for gpu in each.machine.gpus})) for each in (a, b)]
    if drivers[0] != drivers[1]:
        found.append(f"driver: A {drivers[0]}, B {drivers[1]}")
    weights = [{model.weights_sha256 for model in each.models} for each in (a, b)]
    if weights[0] != weights[1]:
        found.append("weights: A and B are of different ones")
    accuracies = [
        {
            model.precision: model.accuracy.knn
            for model in each.models
            if model.accuracy and model.accuracy.knn
        }
        for each in (a, b)
    ]
    for precision in accuracies[0]:
        old_knn, new_knn = accuracies[0][precision], accuracies[1].get(precision)
        if new_knn is not None and old_knn is not None and new_knn != old_knn:
            found.append(f"k-NN accuracy of {precision}: A {100 * old_knn:.2f} %, B {100 * new_knn:.2f} %")
    return found


def _sentence(cells: Sequence[ComparedCell]) -> str:
    both = [cell for cell in cells if cell.ratio is not None]
    if not both:
        return "Verdict: no cell was measured in both."
    counts = {name: sum(cell.verdict == name for cell in both) for name in ("faster", "slower", "disturbed")}
    undecided = len(both) - sum(counts.values())
    sentence = (
        f"Verdict: of {len(both)} cells B is faster in {counts['faster']}, slower in {counts['slower']}, and in "
        f"{undecided} the noise is greater than the difference"
    )
    if counts["disturbed"]:
        sentence += (
            f"; {counts['disturbed']} were disturbed and say nothing: measure again on a quiet machine"
        )
    trusted = [cell.ratio for cell in both if cell.verdict != "disturbed" and cell.ratio]
    if trusted:
        mean = math.exp(sum(map(math.log, trusted)) / len(trusted))
        sentence += f"; {mean:.3f} of A's speed in the geometric mean"
    return f"{sentence}."
