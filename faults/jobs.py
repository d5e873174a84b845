"""The smallest jobs that write files, and what their results are: the same bits however often they were broken off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.feature_file import read_feature_file
from faults.commands import Commands, Ended, Running
from faults.isolated import isolated
from swav_tf.data.shards.shard_index import INDEX, read_index, shard_path
from swav_tf.data.shards.sharding import file_sha256
from swav_tf.data.shards.sharding_state import JOURNAL
from swav_tf.errors import SwavError
from swav_tf.training.checkpoint import ARRAYS, CheckpointStore

NETWORK = (
    "model.backbone.name=resnet_small", "model.head_hidden=24", "model.projection_dim=16", "model.prototypes=12",
)  # fmt: skip
PRETRAIN = (
    *NETWORK,
    "crops=[{count: 2, size: 16, scale: [0.4, 1.0]}, {count: 2, size: 12, scale: [0.2, 0.5]}]",
    "train.epochs=2", "train.batch_size=64", "method.prototypes_frozen_steps=10", "method.queue.length=128",
    "optimizer.warmup_epochs=1", "data.threads=2", "monitor.log_every_steps=1", "monitor.knn_every_epochs=1",
    "checkpoint.every_minutes=0.004",
)  # fmt: skip
CLASSIFIER = (
    "crop.size=16", "train.epochs=3", "train.batch_size=64", "data.threads=2", "monitor.log_every_steps=1",
    "monitor.validate_every_epochs=1", "data.evaluation={resize: 16, crop: 16}", "checkpoint.every_minutes=0.004",
)  # fmt: skip
SHARD_IMAGES = 32  # of `features`
# Of a training: before it nothing is left to go on from, and TensorFlow takes most of a small run's time to get there.
FIRST_PROGRESS = "run/checkpoints/step-*"


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder of its own.

    Attributes:
        name: for the table.
        arguments: of the command, for its folder.
        sign: pattern below the folder; a change of what it matches is the first sign of work.
        result: what tells the result, for the folder; equal for equal results.
        whole: what is half-written under its own name in the folder after a break; empty: nothing.
        goes_on: what was done before a break is kept.
        remains: what a break has left in the folder that the same command must go on from, by name; empty: nothing.
        kept: what of the names the command that has ended in the folder went on from.
        replaces: the same command again makes it anew and puts it in the place of what is there.
        before: called first in the command's process.
        stdout: file in the folder that its stdout goes to, if any; it is a real process then.
        environment: of a real process, beside our own.
    """

    name: str
    arguments: Callable[[Path], list[str | Path]]
    sign: str
    result: Callable[[Path], dict[str, Any]]
    whole: Callable[[Path], str]
    goes_on: bool = True
    remains: Callable[[Path], set[str]] = lambda folder: set()
    kept: Callable[[Path, Ended], set[str]] = lambda folder, ended: set()
    replaces: bool = False
    before: Callable[[], None] | None = None
    stdout: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, commands: Commands, folder: Path, *, temporary: Path | None = None) -> Running:
        """Starts the command; its temporary files go where it is told."""

        def before() -> None:
            if temporary is not None:
                os.environ["TMPDIR"] = str(temporary)
                tempfile.tempdir = str(temporary)  # else Python looks elsewhere where the disk is full by now
            if self.before is not None:
                self.before()

        arguments = self.arguments(folder)
        if self.stdout:
            stdout, environment = folder / self.stdout, self.environment
            return commands.start(arguments, real=True, stdout=stdout, environment=environment)
        return commands.start(arguments, before=before)


@dataclass(frozen=True)
class Made:
    """What other jobs start from.

    Attributes:
        run: a pretraining run.
        exported: a folder of `swav-tf export`.
        images: a folder of labelled images.
    """

    run: Path
    exported: Path
    images: Path


def overrides(settings: Sequence[str]) -> list[str]:
    """As options."""
    return [word for setting in settings for word in ("-o", setting)]


def pretrain(
    data: Sequence[str | Path] = (), settings: Sequence[str] = (), *, weights: Path | None = None
) -> Job:
    """A pretraining of 44 steps on the digits, or on other images; `weights` is a run that it begins with."""
    begins_with: list[str | Path] = [] if weights is None else ["--weights", weights]
    return Job(
        "pretrain",
        lambda folder: [
            "pretrain", *data, "-c", "demo", *overrides((*PRETRAIN, *settings)), "--run-dir", folder / "run",
            *begins_with,
        ],
        FIRST_PROGRESS,
        lambda folder: run_result(folder / "run", "pretrain"),
        lambda folder: run_trouble(folder / "run", "pretrain"),
        remains=lambda folder: unfinished_step(folder / "run", "pretrain"),
        kept=lambda folder, ended: resumed_step(folder / "run"),
    )  # fmt: skip


def classifier(kind: str, model: Path, *, cached: bool = False) -> Job:
    """A probe or fine-tuning of 66 steps on the digits."""
    return Job(
        f"{kind} --cached" if cached else kind,
        lambda folder: [
            kind, "--model", model, "-c", f"{kind}_digits",
            *overrides((*CLASSIFIER, *([] if kind == "probe" else ["optimizer.decay_epochs=[1, 2]"]))),
            *(["--cached"] if cached else []), "--run-dir", folder / "run",
        ],
        "run/model.json" if cached else FIRST_PROGRESS,
        lambda folder: run_result(folder / "run", kind),
        lambda folder: run_trouble(folder / "run", kind),
        goes_on=not cached,
        # Cached, it writes one checkpoint, at its end, and never goes on from it.
        remains=lambda folder: set() if cached else newest_step(folder / "run", kind),
        kept=lambda folder, ended: resumed_step(folder / "run"),
    )  # fmt: skip


def features(model: Path, ending: str) -> Job:
    """The features of 1,437 digits, 45 shards."""
    return Job(
        f"features {ending}",
        lambda folder: [
            "features", "digits", "--split", "train", "--model", model, "-o", folder / f"features{ending}",
            "--shard-size", str(SHARD_IMAGES), "--batch-size", "16", "--threads", "2",
        ],
        f"features{ending}.shards/shard-*.npz",
        lambda folder: files_of(folder),
        lambda folder: feature_trouble(folder / f"features{ending}"),
        remains=lambda folder: {path.name for path in folder.glob(f"features{ending}.shards/shard-*.npz")},
        kept=lambda folder, ended: kept_feature_shards(ended),
    )  # fmt: skip


def export(model: Path, precision: str) -> Job:
    """ONNX files with their reference."""
    return Job(
        f"export {precision}",
        lambda folder: [
            "export", model, "-o", folder / "exported", "--precision", precision, "--reference-images", "64",
            "--calibration-images", "32",
        ],
        "exported/.part-*/*",
        lambda folder: files_of(folder / "exported"),
        lambda folder: files_trouble(folder / "exported"),
        goes_on=False,
        replaces=True,
    )  # fmt: skip


def shard(images: Path) -> Job:
    """TFRecord shards of a folder of images."""
    return Job(
        "data shard",
        lambda folder: ["data", "shard", images, folder / "shards", "--shards", "48", "--threads", "2"],
        "shards/*",
        lambda folder: files_of(folder / "shards"),
        lambda folder: shard_trouble(folder / "shards"),
        remains=lambda folder: noted_shards(folder / "shards"),
        kept=lambda folder, ended: shard_files(folder / "shards"),
    )


def benchmark(exported: Path) -> Job:
    """A measurement of six cells, each in a process of its own."""
    return Job(
        "benchmark",
        lambda folder: [
            "benchmark", exported, "--runner", "ort-cpu", "--batch", "1,2,4,8,16,32", "--seconds", "0.1", "--runs", "3",
            "--threads", "1", "--json", folder / "figures.json", "--html", folder / "report.html", "--resume",
        ],
        "*",
        lambda folder: benchmark_result(folder),
        lambda folder: files_trouble(folder),
        remains=lambda folder: measured_cells(folder / "figures.json"),
        kept=lambda folder, ended: measured_cells(folder / "figures.json"),
    )  # fmt: skip


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


def kept_feature_shards(ended: Ended) -> set[str]:
    """Shards whose images were done before, as `features` says; it does them in order, and removes them at its end."""
    said = re.search(r"([\d,]+) of the images were done before", ended.stdout)
    images = int(said[1].replace(",", "")) if said else 0
    return {f"shard-{number:06d}.npz" for number in range(-(-images // SHARD_IMAGES))}


def shard_files(folder: Path) -> set[str]:
    """The files of the shards, each as it was written that time."""
    return {
        f"{path.name} (inode {path.stat().st_ino}, written at {path.stat().st_mtime_ns})"
        for path in folder.glob("*.tfrecord")
    }


def noted_shards(folder: Path) -> set[str]:
    """Those of them that the journal names; all, where the index is there and the journal no longer."""
    files, journal = shard_files(folder), folder / JOURNAL
    if not journal.exists():
        return files if (folder / INDEX).exists() else set()
    noted = set()
    for line in journal.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line may be cut
            noted.add(json.loads(line)["name"])
    return {name for name in files if name.split(" ")[0] in noted}


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
        wrong = [one.name for one in index.shards if file_sha256(shard_path(index, one)) != one.sha256]
    except SwavError as error:
        return str(error)
    return f"{INDEX} names {', '.join(wrong)}, which have other bytes" if wrong else ""


# === What jobs start from ===


def make(commands: Commands, folder: Path) -> Made:
    """A trained run, its export and a folder of images, in a new folder."""
    folder.mkdir(parents=True)
    commands.must_run(pretrain().arguments(folder))
    commands.must_run(export(folder / "run", "fp32").arguments(folder))
    return Made(folder / "run", folder / "exported", labelled_images(folder / "images", 1200))


def labelled_images(folder: Path, count: int) -> Path:
    """Noise in colour, 40 x 48 pixels, in folders of three classes."""
    draw = np.random.default_rng(9)
    for number in range(count):
        path = folder / f"class {number % 3}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder
