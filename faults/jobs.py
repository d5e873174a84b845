"""The smallest jobs that write files, and what their results are: the same bits however often they were broken off."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults import outcomes
from faults.commands import Commands, Ended, Running

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
        lambda folder: outcomes.run_result(folder / "run", "pretrain"),
        lambda folder: outcomes.run_trouble(folder / "run", "pretrain"),
        remains=lambda folder: outcomes.unfinished_step(folder / "run", "pretrain"),
        kept=lambda folder, ended: outcomes.resumed_step(folder / "run"),
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
        lambda folder: outcomes.run_result(folder / "run", kind),
        lambda folder: outcomes.run_trouble(folder / "run", kind),
        goes_on=not cached,
        # Cached, it writes one checkpoint, at its end, and never goes on from it.
        remains=lambda folder: set() if cached else outcomes.newest_step(folder / "run", kind),
        kept=lambda folder, ended: outcomes.resumed_step(folder / "run"),
    )  # fmt: skip


def features(model: Path, ending: str) -> Job:
    """The features of 1,437 digits."""
    return Job(
        f"features {ending}",
        lambda folder: [
            "features", "digits", "--split", "train", "--model", model, "--output", folder / f"features{ending}",
            "--batch", "16", "--threads", "2",
        ],
        f"features{ending}.work/progress.json",
        lambda folder: outcomes.files_of(folder),
        lambda folder: outcomes.feature_trouble(folder / f"features{ending}"),
        remains=lambda folder: outcomes.saved_images(folder / f"features{ending}.work"),
        kept=lambda folder, ended: outcomes.resumed_images(ended),
    )  # fmt: skip


def export(model: Path, precision: str) -> Job:
    """ONNX files with their reference."""
    return Job(
        f"export {precision}",
        lambda folder: [
            "export", model, "--output", folder / "exported", "--precision", precision, "--reference-images", "64",
            "--calibration-images", "32",
        ],
        "exported/.part-*/*",
        lambda folder: outcomes.files_of(folder / "exported"),
        lambda folder: outcomes.files_trouble(folder / "exported"),
        goes_on=False,
        replaces=True,
    )  # fmt: skip


def shard(images: Path) -> Job:
    """TFRecord shards of a folder of images."""
    return Job(
        "data shard",
        lambda folder: ["data", "shard", images, folder / "shards", "--shards", "48", "--threads", "2"],
        "shards/*",
        lambda folder: outcomes.files_of(folder / "shards"),
        lambda folder: outcomes.shard_trouble(folder / "shards"),
        remains=lambda folder: outcomes.shard_files(folder / "shards"),
        kept=lambda folder, ended: outcomes.shard_files(folder / "shards"),
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
        lambda folder: outcomes.benchmark_result(folder),
        lambda folder: outcomes.files_trouble(folder),
        remains=lambda folder: outcomes.measured_cells(folder / "figures.json"),
        kept=lambda folder, ended: outcomes.measured_cells(folder / "figures.json"),
    )  # fmt: skip


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
