"""The smallest commands that write files, their results, and what an interruption must leave behind."""

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.engine_file import read_engine
from evaluate.feature_file import read_feature_file
from swav_tf.data.shard_index import INDEX, read_index, shard_damage
from swav_tf.runs.checkpoint import ARRAYS, CheckpointStore
from tests.faults.harness import Ended

PRETRAIN = (
    "model.backbone.name=resnet_small", "model.head_hidden=24", "model.projection_dim=16", "model.prototypes=12",
    "crops=[{count: 2, size: 16, scale: [0.4, 1.0]}, {count: 2, size: 12, scale: [0.2, 0.5]}]",
    "train.epochs=2", "train.batch_size=64", "method.prototypes_frozen_steps=10", "method.queue.length=128",
    "optimizer.warmup_epochs=1", "data.threads=2", "monitor.log_every_steps=1", "monitor.knn_every_epochs=1",
    "checkpoint.every_minutes=0.004",
)  # fmt: skip
CLASSIFIER = (
    "crop.size=16", "train.epochs=3", "train.batch_size=64", "data.threads=2", "monitor.log_every_steps=1",
    "monitor.validate_every_epochs=1", "data.evaluation={resize: 16, crop: 16}", "checkpoint.every_minutes=0.004",
)  # fmt: skip
DAMAGED_IMAGES = (
    "data.kind=class_folders", "data.validation_split=null", "data.max_bad_share=0.1", "train.batch_size=32",
    "method.queue.length=64", "monitor.knn_every_epochs=0",
)  # fmt: skip

Words = list[object]


@dataclass(frozen=True)
class Inputs:
    """What commands read."""

    run: Path
    exported: Path
    images: Path
    probe: Path
    features: Path
    figures: Path  # of a benchmark
    damaged: Path  # class folders with truncated images


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder of its own.

    Attributes:
        name: for the table.
        words: of the command, given its folder.
        result: equal for equal results.
        check: asserts that nothing in the folder is half-written under its own name.
        sign: pattern below the folder; a change of what it matches is the first progress.
        resumes: an interrupted command keeps what was done.
        remains: what an interruption has left to resume from, by name.
        kept: which of these names the command that has ended did resume from.
        replaces: the same command again replaces an earlier result.
        before: called first in the command's process.
    """

    name: str
    words: Callable[[Path], Words]
    result: Callable[[Path], dict[str, Any]]
    check: Callable[[Path], None]
    sign: str = "*"
    resumes: bool = True
    remains: Callable[[Path], set[str]] = lambda folder: set()
    kept: Callable[[Path, Ended], set[str]] = lambda folder, ended: set()
    replaces: bool = False
    before: Callable[[], None] | None = None


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


def pretrain(*data: Path, settings: tuple[str, ...] = (), weights: Path | None = None) -> Job:
    """Pretrain for 44 steps on the digits, or on other images."""
    start: Words = [] if weights is None else ["--weights", weights]
    options = overrides(*PRETRAIN, *settings)
    return Job(
        "pretrain",
        lambda f: ["pretrain", *data, "-c", "demo", *options, "--run-dir", f / "run", *start],
        lambda f: run_result(f / "run", "pretrain"),
        lambda f: check_run(f / "run", "pretrain"),
        sign="run/checkpoints/step-*",
        # A run with a summary is complete: the same command leaves it as it is.
        remains=lambda f: set() if (f / "run/summary.json").exists() else newest_step(f / "run", "pretrain"),
        kept=lambda f, ended: resumed_step(f / "run"),
    )


def classifier(kind: str, model: Path, *, cached: bool = False) -> Job:
    """Train a probe or fine-tune for 66 steps on the digits."""
    options = overrides(*CLASSIFIER, *([] if kind == "probe" else ["optimizer.decay_epochs=[1, 2]"]))
    options += ["--cached"] if cached else []
    return Job(
        f"{kind} --cached" if cached else kind,
        lambda f: [kind, "--model", model, "-c", f"{kind}_digits", *options, "--run-dir", f / "run"],
        lambda f: run_result(f / "run", kind),
        lambda f: check_run(f / "run", kind),
        sign="run/model.json" if cached else "run/checkpoints/step-*",
        resumes=not cached,  # cached, its only checkpoint is the result
        remains=lambda f: set() if cached else newest_step(f / "run", kind),
        kept=lambda f, ended: resumed_step(f / "run"),
    )


def features(model: Path, ending: str) -> Job:
    """Compute the features of 1,437 digits."""
    name = f"features{ending}"
    return Job(
        f"features {ending}",
        lambda f: ["features", "digits", "--split", "train", "--model", model, "--output", f / name,
                   "--batch", "16", "--threads", "2"],
        files_of,
        lambda f: check_features(f / name),
        sign=f"{name}.work/progress.json",
        remains=lambda f: saved_images(f / f"{name}.work/progress.json"),
        kept=lambda f, ended: resumed_images(ended),
    )  # fmt: skip


def export(model: Path, precision: str, *more: object) -> Job:
    """Write ONNX files with their reference."""
    return Job(
        " ".join(["export", precision, *(str(word) for word in more if str(word).startswith("--"))]),
        lambda f: ["export", model, "--output", f / "exported", "--precision", precision, "--reference-images", "64",
                   "--calibration-images", "32", *(f / word if isinstance(word, Path) else word for word in more)],
        files_of,
        lambda f: check_files(f / "exported"),
        sign="exported/.part-*/*",
        resumes=False,
        replaces=True,
    )  # fmt: skip


def shard(images: Path) -> Job:
    """Pack images into TFRecord shards."""
    return Job(
        "data shard",
        lambda f: ["data", "shard", images, f / "shards", "--shards", "48", "--threads", "2"],
        lambda f: files_of(f / "shards"),
        check_shards,
        sign="shards/*.tfrecord",
        remains=shard_files,
        kept=lambda f, ended: shard_files(f),
    )


def benchmark(exported: Path) -> Job:
    """Measure six cells, each in a process of its own."""
    return Job(
        "benchmark",
        lambda f: ["benchmark", exported, "--runner", "ort-cpu", "--batch", "1,2,4,8,16,32", "--seconds", "0.1",
                   "--runs", "3", "--threads", "1", "--json", f / "figures.json", "--html", f / "report.html",
                   "--resume"],
        benchmark_result,
        check_files,
        remains=measured_cells,
        kept=lambda f, ended: measured_cells(f),
    )  # fmt: skip


def long_jobs(inputs: Inputs) -> list[Job]:
    """Return the commands that take long enough to be interrupted."""
    run = inputs.run
    return [
        pretrain(), classifier("probe", run), classifier("finetune", run), classifier("probe", run, cached=True),
        shard(inputs.images), features(run, ".npz"), features(run, ".npy"), features(run, ".parquet"),
        export(run, "fp32,int8"), benchmark(inputs.exported),
    ]  # fmt: skip


LONG_JOBS = (
    "pretrain", "probe", "finetune", "probe --cached", "data shard", "features .npz", "features .npy",
    "features .parquet", "export fp32,int8", "benchmark",
)  # fmt: skip


def writers(inputs: Inputs) -> Iterator[Job]:
    """Yield one job for each other command that writes."""
    run, exported, images = inputs.run, inputs.exported, inputs.images
    no_board = replace(pretrain(settings=("monitor.tensorboard=false",)), name="pretrain without TensorBoard")
    yield no_board
    damaged = pretrain(inputs.damaged, settings=DAMAGED_IMAGES, weights=run)
    yield replace(damaged, name="pretrain --weights, images damaged")
    commands: dict[str, tuple[bool, Callable[[Path], Words]]] = {
        "weights export .safetensors": (False, lambda f: ["weights", "export", run, "--output", f / "w.safetensors"]),
        "weights export .pth": (False, lambda f: ["weights", "export", run, "--output", f / "w.pth"]),
        "weights import, a run": (False, lambda f: ["weights", "import", run, "--to", f / "run"]),
        "weights import, a file": (False, lambda f: ["weights", "import", run, "--to", f / "w.safetensors"]),
        "verify": (True, lambda f: ["verify", copied(exported, f / "exported")]),
        "crops": (True, lambda f: ["crops", "-c", "demo", "--output", f / "crops.png"]),
        "plot": (True, lambda f: ["plot", inputs.features, "--output", f / "map.png", "--method", "pca"]),
        "clusters": (True, lambda f: ["clusters", "--model", run, "--output", f / "clusters"]),
        "similar": (True, lambda f: ["similar", images / "class 0/00000.png", "--features", inputs.features,
                                     "--model", run, "--output", f / "similar.png"]),
        "predict": (True, lambda f: ["predict", inputs.probe, images, "--output", f / "classes.csv"]),
        "validate": (True, lambda f: ["validate", inputs.probe, "--output", f / "validated"]),
        "data check": (True, lambda f: ["data", "check", images, "--sheet", f / "sheet.png"]),
        "data subset": (True, lambda f: ["data", "subset", "digits", "--share", "0.1", "--output", f / "subset.txt"]),
        "features, images damaged": (False, lambda f: ["features", inputs.damaged, "--kind", "class_folders", "--model",
                                                       run, "--output", f / "x.npz", "--max-bad-share", "0.1"]),
    }  # fmt: skip
    for name, (replaces, words) in commands.items():
        yield Job(name, words, files_of, check_files, replaces=replaces)
    yield export(run, "int8", "--triton", Path("triton"))
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # it builds without a GPU
        yield Job(
            "export --to tensorrt",
            lambda f: ["export", exported / "model-fp32.onnx", "--to", "tensorrt", "--tensorrt", "rtx",
                       "--output", f / "engines", "--engine-cache", f / "cache"],
            engine_result, check_files, replaces=True,
        )  # fmt: skip
    yield Job(
        "demo",
        lambda f: ["demo", "--run-dir", f / "run"],
        demo_result,
        lambda f: (check_run(f / "run", "pretrain"), check_files(f / "run/exported"))[0],
        before=make_demo_small,
    )


WRITERS = (
    "pretrain without TensorBoard", "pretrain --weights, images damaged", "weights export .safetensors",
    "weights export .pth", "weights import, a run", "weights import, a file", "verify", "crops", "plot", "clusters",
    "similar", "predict", "validate", "data check", "data subset", "features, images damaged",
    "export int8 --triton", "export --to tensorrt", "demo",
)  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    if not target.exists():
        shutil.copytree(source, target)
    return target


def make_demo_small() -> None:
    """Give the demo, which has no settings for it, the smallest network and short measurements."""
    import cli.demo
    import cli.demo_export
    from evaluate.benchmark.schema import Settings
    from swav_tf.recipe.files import load_recipe

    short = Settings(seconds=0.05, runs=3, max_seconds=1, rounds=1, threads=1, cuda_graph=False)
    more = (*PRETRAIN, "model.prototypes=50")  # the picture shows 24
    vars(cli.demo)["load_recipe"] = lambda name, given: load_recipe(name, [*given, *more])
    measure = partial(cli.demo_export.export_and_measure, settings=short, keras=False)
    vars(cli.demo)["export_and_measure"] = measure
    vars(cli.demo_export)["BATCHES"] = (1,)


# === Results ===


def files_of(folder: Path) -> dict[str, Any]:
    """Return the SHA-256 of all visible files below a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def content(path: Path) -> bytes:
    """Return the bytes of a file; safetensors writes its header in random order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]


def run_result(run: Path, kind: str) -> dict[str, Any]:
    """Return weights and state bit for bit, every metric, and the tables."""
    checkpoint, complaints = CheckpointStore(run / "checkpoints", kind=kind).newest()
    if checkpoint is None:
        return {"checkpoint": None}
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    summary = json.loads((run / "summary.json").read_text())
    return {
        "complaints": complaints,
        "step": checkpoint.step,
        "arrays": hashlib.sha256((checkpoint.path / ARRAYS).read_bytes()).hexdigest(),
        "position": checkpoint.facts.get("position"),
        "metrics": [without_clocks(json.loads(line)) for line in lines],
        "summary": {k: v for k, v in summary.items() if "seconds" not in k and k != "resumed_from_step"},
        **{path.name: path.read_text() for path in sorted(run.glob("*.csv"))},
    }


def without_clocks(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("time", "images_per_second")}


def benchmark_result(folder: Path) -> dict[str, Any]:
    """Return which cells were measured; their times differ."""
    document = json.loads((folder / "figures.json").read_text())
    keys = ("runner", "precision", "batch", "status", "reason")
    cells = [[cell[key] for key in keys] for cell in document["cells"]]
    return {"complete": document["complete"], "cells": cells, "report": (folder / "report.html").exists()}


def engine_result(folder: Path) -> dict[str, Any]:
    """Return what the engines are; two builds do not have the same bytes."""
    facts = {str(path.relative_to(folder)): read_engine(path)[1] for path in sorted(folder.rglob("*.plan"))}
    return {name: {**fact.model_dump(), "plan_sha256": ""} for name, fact in facts.items()}


def demo_result(folder: Path) -> dict[str, Any]:
    """Return the run's result and the reference; of files with times in them, that they exist."""
    run = folder / "run"
    result = run_result(run, "pretrain")
    result.get("summary", {}).pop("export", None)
    pages = {name: (run / name).exists() for name in ("demo.png", "demo.html", "benchmark.json")}
    exported = files_of(run / "exported")
    return result | pages | {"exported": list(exported), "reference": exported.get("reference.npz")}


# === What an interruption leaves to resume from ===


def newest_step(run: Path, kind: str) -> set[str]:
    checkpoint, _ = CheckpointStore(run / "checkpoints", kind=kind).newest()
    return set() if checkpoint is None else {f"step {checkpoint.step}"}


def resumed_step(run: Path) -> set[str]:
    step = json.loads((run / "summary.json").read_text())["resumed_from_step"]
    return {f"step {step}"} if step else set()


def saved_images(progress: Path) -> set[str]:
    images = json.loads(progress.read_text())["images"] if progress.exists() else 0
    return {f"{images} images"} if images else set()


def resumed_images(ended: Ended) -> set[str]:
    printed = re.search(r"([\d,]+) of the images had been computed before", ended.out)
    return {f"{printed[1].replace(',', '')} images"} if printed else set()


def shard_files(folder: Path) -> set[str]:
    """Return the finished shards, each as it was written that time."""
    shards = folder.glob("shards/images-*.tfrecord")
    return {f"{path.name} (inode {path.stat().st_ino}, {path.stat().st_mtime_ns})" for path in shards}


def measured_cells(folder: Path) -> set[str]:
    """Return the cells of a benchmark with the times of their runs."""
    figures = folder / "figures.json"
    cells = json.loads(figures.read_text())["cells"] if figures.exists() else []
    times = [[cell[clock]["rounds_ms"] for clock in ("device", "host") if cell[clock]] for cell in cells]
    return {f"{cell['batch']}: {measured}" for cell, measured in zip(cells, times, strict=True) if measured}


# === Nothing is half-written under its own name ===


def check_run(run: Path, kind: str) -> None:
    """Read every checkpoint, JSON file and line of metrics; only the last line may be cut off."""
    store = CheckpointStore(run / "checkpoints", kind=kind)
    for step in store.steps():
        store.read(step)
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    metrics = run / "metrics.jsonl"
    for line in (metrics.read_text().splitlines() if metrics.exists() else [])[:-1]:
        json.loads(line)


def check_features(output: Path) -> None:
    if output.exists():
        read_feature_file(output)


def check_files(folder: Path) -> None:
    """Read JSON and .npz files; others are compared with those of an undisturbed command at the end."""
    if folder.is_dir():
        for path in folder.glob("[!.]*.json"):
            json.loads(path.read_text())
        for path in folder.glob("[!.]*.npz"):
            with np.load(path) as file:
                assert [file[name] for name in file.files], path


def check_shards(folder: Path) -> None:
    if (folder / "shards" / INDEX).exists():
        index = read_index(str(folder / "shards"))
        assert not [shard.name for shard in index.shards if shard_damage(index, shard)]
