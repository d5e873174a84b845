"""What a job has left in its folder: its result, what a break left to go on from, and what may not be there."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.feature_file import read_feature_file
from faults.commands import Ended
from faults.isolated import isolated
from swav_tf.data.shard_index import INDEX, read_index, shard_damage
from swav_tf.plumbing.errors import SwavError
from swav_tf.runs.checkpoint import ARRAYS, CheckpointStore

# === Results ===


def files_of(folder: Path) -> dict[str, Any]:
    """SHA-256 of all visible files below a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _content(path: Path) -> bytes:
    """The bytes of a file; the library writes a safetensors file's header in a random order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]


def run_result(run: Path, kind: str) -> dict[str, Any]:
    """Weights and state bit for bit, every figure of the course, and the tables."""
    checkpoint, complaints = CheckpointStore(run / "checkpoints", kind=kind).newest()
    if checkpoint is None:
        return {"checkpoint": None}
    clocks = ("time", "images_per_second")
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    summary = json.loads((run / "summary.json").read_text())
    told = {k: v for k, v in summary.items() if "seconds" not in k and k != "resumed_from_step"}
    return {
        "complaints": complaints,
        "step": checkpoint.step,
        "arrays": hashlib.sha256((checkpoint.path / ARRAYS).read_bytes()).hexdigest(),
        "position": checkpoint.facts.get("position"),
        "metrics": [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines],
        "summary": told,
        **{path.name: path.read_text() for path in sorted(run.glob("*.csv"))},
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The names of what differs, in words; empty where nothing does."""
    return ", ".join(
        f"{key}: {str(one.get(key))[:150]} and {str(other.get(key))[:150]}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    )


def benchmark_result(folder: Path) -> dict[str, Any]:
    """Which cells were measured; their figures differ each time."""
    document = json.loads((folder / "figures.json").read_text())
    cells = [
        [cell[key] for key in ("runner", "precision", "batch", "status", "reason")]
        for cell in document["cells"]
    ]
    return {"complete": document["complete"], "cells": cells, "report": (folder / "report.html").exists()}


# === What a break leaves to go on from, and what of it was kept ===
# Where a name tells which bytes or figures these are, doing them again makes another name.


def newest_step(run: Path, kind: str) -> set[str]:
    """The step of the newest whole checkpoint."""
    checkpoint, _ = CheckpointStore(run / "checkpoints", kind=kind).newest()
    return set() if checkpoint is None else {f"step {checkpoint.step}"}


def unfinished_step(run: Path, kind: str) -> set[str]:
    """Likewise; none where the run has its summary: it is complete, and the same command leaves all as it is."""
    return set() if (run / "summary.json").exists() else newest_step(run, kind)


def resumed_step(run: Path) -> set[str]:
    """The step that an ended run went on from."""
    step = json.loads((run / "summary.json").read_text())["resumed_from_step"]
    return {f"step {step}"} if step else set()


def saved_images(work: Path) -> set[str]:
    """The images whose features an interrupted run has saved."""
    progress = work / "progress.json"
    images = json.loads(progress.read_text())["images"] if progress.exists() else 0
    return {f"{images} images"} if images else set()


def resumed_images(ended: Ended) -> set[str]:
    """The images that `features` did not compute again, from its output."""
    printed = re.search(r"([\d,]+) of the images had been computed before", ended.stdout)
    return {f"{printed[1].replace(',', '')} images"} if printed else set()


def shard_files(folder: Path) -> set[str]:
    """The files of the shards, each as it was written that time."""
    return {
        f"{path.name} (inode {path.stat().st_ino}, written at {path.stat().st_mtime_ns})"
        for path in folder.glob("images-*.tfrecord")
    }


def measured_cells(figures: Path) -> set[str]:
    """The cells of a benchmark with the times of their runs."""
    if not figures.exists():
        return set()
    cells = json.loads(figures.read_text())["cells"]
    return {
        f"{cell['runner']} {cell['precision']} batch {cell['batch']}: {times}"
        for cell in cells
        if (times := [cell[how]["rounds_ms"] for how in ("device", "host") if cell[how]])
    }


# === What a break may not leave behind ===


def run_trouble(run: Path, kind: str) -> str:
    """A checkpoint or JSON file that is not whole, or lines of metrics that are none but the last."""
    store = CheckpointStore(run / "checkpoints", kind=kind)
    for step in store.steps():
        try:
            store.read(step)
        except SwavError as error:
            return str(error)
    for path in run.glob("[!.]*.json"):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            return f"{path.name}: {error}"
    metrics = run / "metrics.jsonl"
    for line in (metrics.read_text().splitlines() if metrics.exists() else [])[:-1]:
        try:
            json.loads(line)
        except ValueError as error:
            return f"metrics.jsonl: {error}"
    return ""


def feature_trouble(output: Path) -> str:
    """A feature file that is there and not whole."""
    if not output.exists():
        return ""

    def read(path: Path) -> None:
        read_feature_file(path)

    # In another process: pyarrow starts threads, and from this one commands are forked.
    [answer] = isolated(read, [output])
    return answer.broken


def files_trouble(folder: Path) -> str:
    """JSON or .npz that is there and not whole; ONNX files are compared with the undisturbed ones at the end."""
    for path in folder.glob("[!.]*.json") if folder.is_dir() else ():
        try:
            json.loads(path.read_text())
        except ValueError as error:
            return f"{path.name}: {error}"
    for path in folder.glob("[!.]*.npz") if folder.is_dir() else ():
        try:
            with np.load(path) as file:
                [file[name] for name in file.files]
        except Exception as error:  # whatever a half-written archive makes NumPy raise
            return f"{path.name}: {error}"
    return ""


def shard_trouble(folder: Path) -> str:
    """An index that is there and not whole, or of other shards."""
    if not (folder / INDEX).exists():
        return ""
    try:
        index = read_index(str(folder))
        wrong = [shard.name for shard in index.shards if shard_damage(index, shard)]
    except SwavError as error:
        return str(error)
    return f"{INDEX} names {', '.join(wrong)}, which have other bytes" if wrong else ""
