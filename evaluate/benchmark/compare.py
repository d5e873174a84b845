"""Compare two benchmarks with verdicts that account for noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from evaluate.benchmark.schema import Benchmark, Cell

Verdict = Literal[
    "faster", "slower", "no difference shown", "disturbed", "only in A", "only in B", "not measured"
]

DISTURBED: Final = ("busy", "throttled")  # marks of cells whose error may exceed their spread
SURE: Final = 2.5758  # standard errors that contain 99 % of a normal distribution


@dataclass(frozen=True)
class ComparedCell:
    """One cell of both benchmarks.

    The verdict is faster or slower if 1 lies outside the 99 % confidence interval of the ratio, low to high. It is
    disturbed if in either benchmark other processes used the machine, or its GPU was throttled.
    """

    name: str  # runner, precision and batch, and the model if there are several
    a: float | None  # images/s in A; None: not measured
    b: float | None  # images/s in B
    verdict: Verdict
    ratio: float | None = None  # b / a
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All cells of two benchmarks, in the order of A, then those of B alone."""

    cells: tuple[ComparedCell, ...]
    differences: tuple[str, ...]  # in machine, versions, settings, model and accuracy
    comparable: bool  # whether both have the same processor, GPU and number of threads
    verdict: str  # a one-sentence summary

    def below(self, ratio: float) -> list[str]:
        """Return a line for each cell that is surely slower than `ratio` times A, or that B lacks."""
        lines = []
        for cell in self.cells:
            if cell.verdict in ("only in A", "not measured") and cell.a is not None:
                lines.append(f"{cell.name}: measured in A, but not in B")
            elif cell.verdict != "disturbed" and cell.high is not None and cell.high < ratio:
                lines.append(
                    f"{cell.name}: {cell.ratio:.3f} of A's speed (at most {cell.high:.3f}), must be {ratio:g}"
                )
        return lines

    def undecided(self, ratio: float) -> list[str]:
        """Return the cells for which noise or a disturbance leaves open whether they reach `ratio`."""
        return [
            cell.name
            for cell in self.cells
            if cell.verdict == "disturbed"
            or (cell.low is not None and cell.high is not None and cell.low < ratio <= cell.high)
        ]


def compare_benchmarks(a: Benchmark, b: Benchmark) -> Comparison:
    """Compare B with A, cell by cell.

    Cells match by model, runner, precision and batch. If each benchmark has one model, its name is ignored.
    """
    several = a.several_models or b.several_models
    in_a, in_b = (
        {f"{cell.model if several else ''} {cell.label}".strip(): cell for cell in each.cells}
        for each in (a, b)
    )
    cells = [_compared(name, in_a.get(name), in_b.get(name)) for name in dict.fromkeys([*in_a, *in_b])]
    cells = [cell for cell in cells if cell.a is not None or cell.b is not None]
    machine = _differing(_machine_facts(a), _machine_facts(b))
    others = _differing(_other_facts(a), _other_facts(b))
    return Comparison(tuple(cells), (*machine, *others), not machine, _summary(cells))


def _compared(name: str, a: Cell | None, b: Cell | None) -> ComparedCell:
    old, new = (None if cell is None else cell.best for cell in (a, b))
    speed_a, speed_b = (timing.images_per_second if timing else None for timing in (old, new))
    if a is None or b is None or old is None or new is None:
        verdict: Verdict = "only in A" if old else "only in B" if new else "not measured"
        return ComparedCell(name, speed_a, speed_b, verdict)
    ratio = new.images_per_second / old.images_per_second
    # The relative errors of both are independent; the logarithm of the ratio is taken as normal.
    factor = math.exp(SURE * math.hypot(old.images_per_second_error, new.images_per_second_error))
    low, high = ratio / factor, ratio * factor
    if any(mark.startswith(DISTURBED) for mark in (*a.marks, *b.marks)):
        verdict = "disturbed"
    else:
        verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference shown"
    return ComparedCell(name, speed_a, speed_b, verdict, ratio, low, high)


# === What else differs ===


def _machine_facts(benchmark: Benchmark) -> dict[str, object]:
    """Return the facts that must be equal for speeds to be comparable."""
    machine = benchmark.machine
    gpus = ", ".join(gpu.name for gpu in machine.gpus) or "none"
    return {"CPU": machine.cpu, "cores": machine.cores, "GPU": gpus, "threads": benchmark.settings.threads}


def _other_facts(benchmark: Benchmark) -> dict[str, object]:
    machine, models = benchmark.machine, benchmark.models
    facts: dict[str, object] = dict(machine.versions)
    facts["driver"] = ", ".join(sorted({gpu.driver for gpu in machine.gpus})) or "none"
    facts["weights"] = ", ".join(sorted({model.weights_sha256[:12] for model in models}))
    for model in models:
        if model.accuracy is not None and model.accuracy.knn is not None:
            facts[f"k-NN of {model.precision} among {model.accuracy.knn_images:,} images"] = (
                f"{100 * model.accuracy.knn:.2f} %"
            )
    return facts


def _differing(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    return [
        f"{name}: A {a.get(name, 'none')}, B {b.get(name, 'none')}"
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]


def _summary(cells: Sequence[ComparedCell]) -> str:
    both = [cell for cell in cells if cell.ratio is not None]
    if not both:
        return "Verdict: no cell was measured in both."
    counts = {name: sum(cell.verdict == name for cell in both) for name in ("faster", "slower", "disturbed")}
    sentence = (
        f"Verdict: of {len(both)} cells B is faster in {counts['faster']}, slower in {counts['slower']}, and in "
        f"{len(both) - sum(counts.values())} the noise exceeds the difference"
    )
    if disturbed := counts["disturbed"]:
        sentence += f"; {disturbed} were disturbed and prove nothing: measure again on a quiet machine"
    ratios = [cell.ratio for cell in both if cell.verdict != "disturbed" and cell.ratio]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        sentence += f"; geometric mean {mean:.3f} of A's speed"
    return f"{sentence}."
