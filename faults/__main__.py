"""Runs the kinds of faults one after the other, and ends with exit code 1 if something is found.

Results go to a JSON file kind by kind: a run that was broken off goes on behind the last whole kind, on the same code.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from faults import report
from faults.code_version import code_version
from faults.trial import Plan, Trial

RESULTS = Path(__file__).with_name("results") / "faults.json"

# Kinds in the order in which they run, and how many trials each has by default.
KINDS = {
    "recipes": ("mutated_recipes", 1000),
    "images": ("mutated_images", 1000),
    "weights": ("mutated_weights", 600),
    "checkpoints": ("damaged_checkpoints", 515),
    "onnx": ("mutated_onnx", 500),
    "folders": ("folders", 15),
    "disk": ("disk_full", 70),
    "kills": ("kills", 40),
    "settings": ("altered_settings", 200),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing found, 1 findings."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", help=f"kinds, with commas; of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, help="trials of each kind; by default as many as each needs")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="results; kinds in it of this code are not run again"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each trial")
    parser.add_argument("--again", action="store_true", help="run them again")
    asked = parser.parse_args(arguments)
    kinds = asked.only.split(",") if asked.only else list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--only takes {', '.join(KINDS)}. Received: {', '.join(unknown)}.")

    results = report.read(asked.json)
    code = code_version(Path(__file__).parents[1])
    for kind in kinds:
        count = KINDS[kind][1] if asked.count is None else asked.count
        wanted = {"seed": asked.seed, "first": asked.first, "count": count, "code": code}
        known = results.get(kind, {})
        same = all(known.get(key) == value for key, value in wanted.items())
        if known and same and code is not None and not asked.again:
            print(f"=== {kind}: done on {known['date']} with this very code", flush=True)
            continue
        began = time.perf_counter()
        print(f"=== {kind}: {count} trials", flush=True)
        trials = _run(kind, seed=asked.seed, first=asked.first, count=count, verbose=asked.verbose)
        results[kind] = report.entry(trials, wanted, seconds=time.perf_counter() - began)
        results = {name: results[name] for name in KINDS if name in results}
        report.write(asked.json, results)

    shown = {kind: results[kind] for kind in kinds}
    print(report.table(shown))
    return 1 if any(found["findings"] for found in shown.values()) else 0


def _run(kind: str, *, seed: int, first: int, count: int, verbose: bool) -> list[Trial]:
    module = importlib.import_module(f"faults.{KINDS[kind][0]}")
    folder = Path(tempfile.mkdtemp(prefix=f"swav-tf-faults-{kind}-"))
    trials: list[Trial] = []
    began = time.perf_counter()
    try:
        plan = Plan(
            seed=seed, numbers=range(first, first + count), folder=folder, code=list(KINDS).index(kind)
        )
        for trial in module.run(plan):
            trials.append(trial)
            if verbose:
                print(
                    f"{time.perf_counter() - began:7.1f} s  {trial.number} {trial.what}: {trial.outcome}",
                    flush=True,
                )
            if trial.finding:
                again = (
                    f"python -m faults --only {kind} --seed {seed} --first {trial.number} --count 1 --again"
                )
                print(f"FINDING {trial.what}: {trial.finding}\n    {again}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return trials


if __name__ == "__main__":
    sys.exit(main())
