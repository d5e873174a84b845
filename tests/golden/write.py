"""Write the files of this folder. They were written by commit 8d665af: `python tests/golden/write.py` there.

A new file format needs new files under new names; the old ones stay, as users' run folders do.
"""

import contextlib
import json
import os
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
import onnx
from PIL import Image

import swav_tf
from cli.main import main
from tests.golden.golden import (
    CROPS,
    GOLDEN,
    crops_of,
    generated_image,
    graph_census,
    opencv_canary,
    sha256,
    write_random_resnet50,
)

RUN = [
    "data.threads=1", "crops.0.size=16", "crops.1.size=12", "crops.1.count=2", "model.head_hidden=24",
    "model.projection_dim=16", "model.prototypes=12", "method.queue.length=256", "method.prototypes_frozen_steps=4",
    "optimizer.warmup_epochs=1", "train.epochs=2", "train.batch_size=128", "monitor.log_every_steps=1",
    "monitor.tensorboard=false", "monitor.knn_every_epochs=0", "checkpoint.keep_last=1", "optimizer.peak_learning_rate=1.0",
]  # fmt: skip
PROBE = [
    "train.epochs=8", "train.batch_size=128", "optimizer.learning_rate=10.0", "data.threads=1",
    "monitor.tensorboard=false", "checkpoint.keep_last=1",
]  # fmt: skip


class SparsifyAndStop(keras.callbacks.Callback):
    """Make kernels compressible after each step, and send SIGTERM after so many."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        for variable in {id(v): v for v in [*self.model.variables, *self.model.optimizer.variables]}.values():
            value = np.asarray(variable)
            if value.ndim == 4:
                bound = np.quantile(np.abs(value), 0.8)
                kept = np.abs(value) > bound
                level = np.sqrt(np.mean(value**2) / kept.mean())
                variable.assign(np.where(kept, np.sign(value) * level, 0).astype(np.float32))
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def command(*arguments):
    try:
        main([*map(str, arguments)])
    except SystemExit as end:
        if end.code:
            raise


def pack(folder):
    with tarfile.open(GOLDEN / f"{folder.name}.tar.xz", "w:xz") as archive:
        archive.add(folder, folder.name, filter=lambda m: None if m.name.endswith((".lock", ".png")) else m)


def overrides(settings):
    return [word for setting in settings for word in ("-o", setting)]


def write_crops():
    hashes, samples = {"opencv": opencv_canary()}, {}
    for name in CROPS:
        crops = crops_of(name)
        hashes[name] = [sha256(crop) for crop in crops]
        samples |= {f"{name}_{number}": crop[::4, ::4] for number, crop in enumerate(crops)}
    (GOLDEN / "crops.json").write_text(json.dumps(hashes, indent=1))
    np.savez_compressed(GOLDEN / "crops.npz", **samples)


def write_runs(root):
    run = root / "run"
    with contextlib.suppress(Exception):  # "Stopped by SIGTERM"
        swav_tf.pretrain(swav_tf.load_recipe("demo", RUN), run_dir=run, callbacks=[SparsifyAndStop(14)])
    command("features", "digits", "--split", "test", "--model", run, "--output", root / "features.npz")
    features = np.load(root / "features.npz")
    np.savez_compressed(
        GOLDEN / "features.npz", features=features["features"][:24], labels=features["labels"][:24]
    )
    pack(run)
    command("probe", "--model", run, "-c", "probe_digits", *overrides(PROBE), "--run-dir", root / "probe")
    pack(root / "probe")
    command(
        "export", run, "--precision", "fp32,int8", "--reference-images", 64, "--calibration-images", 64,
        "--outputs", "features,projections,scores", "--output", root / "exported",
    )  # fmt: skip
    pack(root / "exported")
    # The rest of the run, for its figures.
    command("pretrain", "-c", run / "config.yaml", "--run-dir", run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (GOLDEN / "resumed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (GOLDEN / "resumed_summary.json").write_text((run / "summary.json").read_text())


def write_shards(root):
    for number in range(10):
        path = root / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generated_image(20 + number, 24, number)).save(path)
    command("data", "shard", root / "images", GOLDEN / "shards", "--shards", 3, "--fresh")


def write_census(root):
    write_random_resnet50(root / "resnet50.safetensors")
    command("weights", "import", root / "resnet50.safetensors", "--to", root / "resnet50")
    exported = root / "resnet50_exported"
    command("export", root / "resnet50", "--size", 64, "--reference-images", 2, "--output", exported)
    model = onnx.load(exported / "model-fp32.onnx")
    census = graph_census(model)
    nodes = ",\n".join(map(json.dumps, census.pop("nodes")))  # one a line
    (GOLDEN / "resnet50.json").write_text(f'{json.dumps(census)[:-1]},\n"nodes": [\n{nodes}\n]}}\n')


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for write in (lambda root: write_crops(), write_runs, write_shards, write_census):
            write(Path())
