"""What the suite found: a file that later runs go on with, and a table."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults.trial import Trial


def read(path: Path) -> dict[str, Any]:
    """The results of earlier runs by kind; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, results: dict[str, Any]) -> None:
    """Keeps the results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def entry(trials: list[Trial], wanted: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """What is kept of a kind; `wanted` tells which trials these are, and of which code."""
    return {
        "date": datetime.date.today().isoformat(),
        **wanted,
        "seconds": round(seconds, 1),
        "rows": [
            {
                "what": what,
                "trials": sum(1 for trial in trials if trial.what == what),
                "faults": sum(trial.faults for trial in trials if trial.what == what),
                "outcomes": dict(Counter(t.outcome for t in trials if t.what == what and not t.finding)),
                "findings": sum(1 for trial in trials if trial.what == what and trial.finding),
                "went_on": sum(trial.went_on for trial in trials if trial.what == what),
            }
            for what in dict.fromkeys(trial.what for trial in trials)
        ],
        "findings": [asdict(trial) for trial in trials if trial.finding],
    }


def table(results: dict[str, Any]) -> str:
    """All kinds as Markdown."""
    lines = [
        "| kind | what | faults | came out as | findings |",
        "|---|---|---:|---|---:|",
    ]
    for kind, found in results.items():
        for row in found["rows"]:
            outcomes = ", ".join(f"{name} {count}" for name, count in row["outcomes"].items())
            if went_on := row.get("went_on"):
                outcomes += f"; went on {went_on} time{'s' * (went_on > 1)}"
            lines.append(f"| {kind} | {row['what']} | {row['faults']:,} | {outcomes} | {row['findings']} |")
    seconds = sum(found["seconds"] for found in results.values())
    faults = sum(row["faults"] for found in results.values() for row in found["rows"])
    findings = sum(row["findings"] for found in results.values() for row in found["rows"])
    lines.append(f"| all | {seconds / 60:.0f} minutes | {faults:,} | | {findings} |")
    return "\n".join(lines)
