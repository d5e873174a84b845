"""The smallest form of every command that writes files, its result, and what it leaves to resume from."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from evaluate.feature_file import read_feature_file
from swav_tf.data.shard_index import INDEX, read_index, shard_damage
from swav_tf.runs.checkpoint import CheckpointStore
from tests.faults.harness import Command, Ended

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


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder of its own.

    Attributes:
        line: the command; $folder is its folder, other names are inputs.
        settings: overrides of the recipe.
        kills: SIGKILLs in one round; 0: too short to be killed.
        sign: pattern below the folder; a change of what it matches is the first progress.
        progress: without the command's end: what can be resumed from, by name; with it: what was.
        replaces: the same command again replaces an earlier result.
        copies: an input that the command writes into; it gets a copy.
        varies: patterns of files with other bytes every time, such as times.
        before: called first in the command's process.
    """

    line: str
    settings: tuple[str, ...] = ()
    kills: int = 0
    sign: str = "*"
    progress: Callable[..., set[str]] | None = None
    replaces: bool = False
    copies: str = ""
    varies: tuple[str, ...] = ()
    before: Callable[[], None] | None = None

    def words(self, folder: Path, inputs: Mapping[str, Path]) -> list[str]:
        """Return the command for a folder, after copying what it writes into."""
        if self.copies and not (folder / self.copies).exists():
            shutil.copytree(inputs[self.copies], folder / self.copies)
        words = [Template(word).substitute(inputs, folder=folder) for word in self.line.split()]
        return words + overrides(*self.settings)

    def start(self, folder: Path, inputs: Mapping[str, Path], **options: Any) -> Command:
        return Command(*self.words(folder, inputs), before=options.pop("before", self.before), **options)

    def run(self, folder: Path, inputs: Mapping[str, Path], **options: Any) -> Ended:
        """Run the command, which must succeed."""
        ended = self.start(folder, inputs, **options).wait()
        ended.check(0)
        return ended

    def remains(self, folder: Path) -> set[str]:
        return self.progress(folder) if self.progress else set()

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the content of all visible files, equal for equal results, by path."""
        return {
            str(path): ""
            if any(fnmatch(str(path), varies) for varies in self.varies)
            else content(folder / path)
            for path in visible(folder)
            if "tensorboard" not in path.parts and is_newest(folder / path)
        }


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


def visible(folder: Path) -> list[Path]:
    """Return the relative paths of files without temporary and hidden ones."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.parts)]


def is_newest(path: Path) -> bool:
    """Return whether a file is not of an older checkpoint; which of those remain depends on the time."""
    return not path.parent.name.startswith("step-") or path.parent == max(path.parent.parent.glob("step-*"))


def content(path: Path) -> Any:
    """Return the SHA-256 of a file, or what it contains except times."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":  # its header has a random order
        start = 8 + int.from_bytes(data[:8], "little")
        data = json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]
    elif path.name == "metrics.jsonl":
        return [without(json.loads(line), "time", "images_per_second") for line in data.splitlines()]
    elif path.name == "summary.json":
        return without(json.loads(data), "*seconds*", "resumed_from_step", "export")
    elif path.name == "state.json":
        return json.loads(data).get("position")
    elif path.name == "figures.json":
        keys = ("runner", "precision", "batch", "status", "reason")
        return [[cell[key] for key in keys] for cell in json.loads(data)["cells"]]
    return hashlib.sha256(data).hexdigest()


def without(values: dict[str, Any], *patterns: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not any(fnmatch(key, p) for p in patterns)}


def check(folder: Path) -> None:
    """Read every file that has its own name; only the last line of metrics may be cut off."""
    for path in (folder / path for path in visible(folder)):
        if path.name == "state.json":
            CheckpointStore(path.parents[1], kind=json.loads(path.read_text())["kind"]).read(
                int(path.parent.name[5:])
            )
        elif path.name == INDEX:
            index = read_index(str(path.parent))
            assert not [shard.name for shard in index.shards if shard_damage(index, shard)]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "metrics.jsonl":
            [json.loads(line) for line in path.read_text().splitlines()[:-1]]
        elif path.name in ("features.npz", "features.npy", "features.parquet"):
            read_feature_file(path)
        elif path.suffix == ".npz":
            with np.load(path) as file:
                assert [file[name] for name in file.files], path


# === What an interruption leaves to resume from, and what of it was used ===


def steps(folder: Path, ended: Ended | None = None) -> set[str]:
    summary, checkpoints = folder / "run/summary.json", list(folder.glob("run/checkpoints/step-*"))
    if ended is not None:
        return {f"step-{json.loads(summary.read_text())['resumed_from_step'] or 0:09d}"}
    return {max(checkpoints).name} if checkpoints and not summary.exists() else set()


def images(folder: Path, ended: Ended | None = None) -> set[str]:
    if ended is not None:
        return set(re.findall(r"([\d,]+) of the images were already computed", ended.out))
    saved = [json.loads(path.read_text())["images"] for path in folder.glob("*.work/progress.json")]
    return {f"{number:,}" for number in saved if number}


def shards(folder: Path, ended: Ended | None = None) -> set[str]:
    """Return the finished shards, each as it was written that time."""
    return {f"{path.name} {path.stat().st_ino}" for path in folder.glob("shards/[!.]*.tfrecord")}


# === The commands ===


def make_demo_small() -> None:
    """Give the demo, which has no settings for it, the smallest network and short measurements."""
    import cli.demo
    from swav_tf.recipe.files import load_recipe

    demo = vars(cli.demo)
    more = (*PRETRAIN, "model.prototypes=50")  # the picture shows 24
    demo["load_recipe"] = lambda name, given: load_recipe(name, [*given, *more])
    demo["CELL"] = {"seconds": 0.05, "runs": 3, "threads": 1, "cuda_graph": False}
    demo["BATCHES"] = {"ort-cpu": (1,)}


TRAINING = Job("pretrain -c demo --run-dir $folder/run", PRETRAIN, 6, "run/checkpoints/step-*", steps)
PROBE = replace(
    TRAINING, line="probe --model $run -c probe_digits --run-dir $folder/run", settings=CLASSIFIER, kills=5
)
FEATURES = Job(
    "features digits --split train --model $run --output $folder/features.npz --batch 16 --threads 2",
    kills=5, sign="features.*.work/progress.json", progress=images,
)  # fmt: skip
EXPORT = Job(
    "export $run --output $folder/exported --precision fp32 --reference-images 64",
    kills=4, sign="exported/.part-*/*", replaces=True,
)  # fmt: skip
JOBS = {
    "pretrain": TRAINING,
    "probe": PROBE,
    "probe --cached": replace(PROBE, line=f"{PROBE.line} --cached", kills=3, sign="run/model.json", progress=None),
    "finetune": replace(
        PROBE, line=PROBE.line.replace("probe", "finetune"), settings=(*CLASSIFIER, "optimizer.decay_epochs=[1, 2]")
    ),
    "data shard": Job(
        "data shard $images $folder/shards --shards 48 --threads 2", kills=6, sign="shards/*.tfrecord", progress=shards
    ),
    "features .npz": FEATURES,
    "features .npy": replace(FEATURES, line=FEATURES.line.replace(".npz", ".npy")),
    "features .parquet": replace(FEATURES, line=FEATURES.line.replace(".npz", ".parquet")),
    "export fp32,int8": replace(EXPORT, line=EXPORT.line.replace("fp32", "fp32,int8")),
    "benchmark": Job(
        "benchmark $exported --runner ort-cpu --batch 1,2,4,8,16,32 --seconds 0.1 --runs 3 --threads 1 "
        "--json $folder/figures.json --html $folder/report.html",
        kills=5, varies=("report.html",),
    ),
    "pretrain, no TensorBoard": replace(TRAINING, settings=(*PRETRAIN, "monitor.tensorboard=false"), kills=0),
    "pretrain --weights, damaged images": replace(
        TRAINING, line="pretrain $damaged -c demo --run-dir $folder/run --weights $run",
        settings=(*PRETRAIN, *DAMAGED_IMAGES), kills=0,
    ),
    "features, damaged images": Job(
        "features $damaged --kind class_folders --model $run --output $folder/features.npz --max-bad-share 0.1"
    ),
    "weights export .safetensors": Job("weights export $run --output $folder/w.safetensors"),
    "weights export .pth": Job("weights export $run --output $folder/w.pth"),
    "weights import, a run": Job("weights import $run --to $folder/run"),
    "weights import, a file": Job("weights import $run --to $folder/w.safetensors"),
    "verify": Job("verify $folder/exported", copies="exported", replaces=True),
    "crops": Job("crops -c demo --output $folder/crops.png", replaces=True),
    "plot": Job("plot $features --output $folder/map.png --method pca", replaces=True),
    "report": Job("report $run --output $folder/report.html", replaces=True),
    "duplicates": Job("duplicates $features --output $folder/duplicates", replaces=True),
    "outliers": Job("outliers $features --output $folder/outliers", replaces=True),
    "index": Job("index $parts --output $folder/x.index"),
    "clusters": Job("clusters --model $run --output $folder/clusters", replaces=True),
    "similar": Job(
        "similar $image --features $features --model $run --output $folder/similar.png", replaces=True
    ),
    "predict": Job("predict $probe $images --output $folder/classes.csv", replaces=True),
    "validate": Job("validate $probe --output $folder/validated", replaces=True),
    "data subset": Job("data subset digits --share 0.1 --output $folder/subset.txt", replaces=True),
    "export --triton": replace(
        EXPORT, line=f"{EXPORT.line.replace('fp32', 'int8')} --triton $folder/triton", kills=0
    ),
    "export --to tensorrt": Job(
        "export $exported/model-fp32.onnx --to tensorrt --tensorrt rtx --output $folder/engines "
        "", replaces=True, varies=("*",),
    ),
    "demo": Job(
        "demo --run-dir $folder/run", before=make_demo_small,
        varies=("run/*.html", "run/exported/*", "run/config.yaml"),
    ),
}  # fmt: skip
KILLED = [name for name, job in JOBS.items() if job.kills]
