"""Features by exported files, beside Keras, PyTorch's export, and the whole way from JPEG files.

    python -m benchmarks.inference [--json FILE] [--pairs 10] [--batch 32] [--cache FOLDER]

ResNet-50 at 224 pixels with random weights, batch normalisation adapted to photos. All rows are wall time, A and B in
turn in one run, all cores, after a check that both compute the same. The network is exported once (some minutes,
4 GB) and kept in the cache folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import compare
from benchmarks.photos import photos
from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.backends.onnx_metadata import Preprocessing
from evaluate.benchmark.machine import describe_machine
from evaluate.features import extract_features
from evaluate.images import open_images

PHOTOS = 128
WARM_UP_BATCHES = 8
LAST_GAMMA = 0.2
READY = "ready"


def prepare(folder: Path) -> None:
    """Photos, a run of ResNet-50, its exports and its weights for PyTorch."""
    import tensorflow as tf

    from export.run import export_run
    from export.settings import ExportSettings
    from swav_tf.data.decode import decode, evaluation_view
    from swav_tf.recipe.files import load_recipe, save_recipe
    from swav_tf.runs.checkpoint import CheckpointStore
    from swav_tf.training.build import build_swav
    from swav_tf.training.state import capture, named_variables
    from swav_tf.weights.convert import export_weights

    images = folder / "photos"
    images.mkdir(parents=True, exist_ok=True)
    files = photos(PHOTOS)
    for number, file in enumerate(files):
        (images / f"{number:03d}.jpg").write_bytes(file)
    recipe = load_recipe(
        "swav_100ep",
        ["train.batch_size=16", "train.precision=float32", "model.batch_norm.momentum=0.5", "data.kind=images",
         f"data.path={json.dumps(str(images))}", "model.batch_norm.synchronised=false"],
    )  # fmt: skip
    model = build_swav(recipe)
    for name, variable in named_variables(model).items():
        if name.endswith(
            "_bn3/gamma"
        ):  # as small as training makes them: errors do not grow from block to block
            variable.assign(np.full(variable.shape, LAST_GAMMA, np.float32))
    views = np.stack([evaluation_view(decode(file), recipe.data.evaluation) for file in files[:32]])
    draw = np.random.default_rng(0)
    for _ in range(WARM_UP_BATCHES):  # else activations grow from block to block, as in no trained network
        batch = tf.constant(views[draw.choice(len(views), 16, replace=False)])
        model.backbone(model.normalise(batch), training=True)
    run = folder / "run"
    CheckpointStore(run / "checkpoints", kind="pretrain").write(0, capture(model, batch_size=16), {})
    save_recipe(recipe, run / "config.yaml")
    settings = ExportSettings(precisions=("fp32", "int8"), reference_images=32, calibration_images=32)
    export_run(run, folder / "exported", settings)
    (folder / "weights.pth").unlink(missing_ok=True)
    export_weights(run, folder / "weights.pth", names="swav")
    (folder / READY).touch()


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def least_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float((np.sum(found * wanted, axis=1) / lengths).min())


def keras_predict(run: Path, views: np.ndarray) -> Callable[[], np.ndarray]:
    """Keras' own way: the backbone's `predict` of normalised images."""
    from swav_tf.training.build import load_swav

    model, _ = load_swav(run)
    normalised = model.normalise(views).numpy()
    return lambda: model.backbone.predict(normalised, batch_size=len(views), verbose=0)


def torch_export(
    weights: Path, views: np.ndarray, how: Preprocessing
) -> tuple[Callable[[], np.ndarray], int]:
    """The same network exported by PyTorch, run by ONNX Runtime; and its number of nodes that transpose."""
    import onnx
    import torch

    from benchmarks.torch_resnet import load

    network = load(str(weights), mean=how.mean, std=how.std)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network, (torch.from_numpy(views[:2]),), str(path), opset_version=17, input_names=["images"],
            output_names=["features"], dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}}, dynamo=False,
        )  # fmt: skip
        transposes = sum(node.op_type == "Transpose" for node in onnx.load(path).graph.node)
        session = open_session(path)
    return lambda: session.run(["features"], {"images": views})[0], transposes


def end_to_end(runner: OnnxBackend, folder: Path, batch: int) -> Callable[[], None]:
    """`swav-tf features` of the JPEG files."""
    images = open_images(str(folder), like=runner.data, kind="images", split=None)

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            extract_features(runner, images, Path(place) / "features.npz", batch_size=batch)

    return run


def bare(runner: OnnxBackend, views: np.ndarray, batch: int, images: int) -> Callable[[], None]:
    """The model alone on as many images."""

    def run() -> None:
        for start in range(0, images, batch):
            runner.run(views[: min(batch, images - start)])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark_resnet50"))
    parser.add_argument("--prepare", action="store_true", help="only fill the cache folder")
    arguments = parser.parse_args()
    folder, batch = arguments.cache, arguments.batch
    if arguments.prepare:
        prepare(folder)
        return
    if not (folder / READY).exists():
        # In a process of its own: what TensorFlow and the converter hold is given back.
        command = [sys.executable, "-m", "benchmarks.inference", "--prepare", "--cache", str(folder)]
        subprocess.run(command, check=True)

    rows: list[dict[str, Any]] = []

    def row(name: str, target: str, ours: Callable[[], Any], theirs: Callable[[], Any], **extra: Any) -> None:
        """Adds the ratio of their time to ours: how many times faster ours is."""
        result = compare(ours, theirs, pairs=arguments.pairs, clock=time.perf_counter, pause_seconds=0.1)
        rows.append({"row": name, "target": target, **vars(result), **extra})
        print(
            f"{name:64} {result.ratio:6.3f}  [{result.low:.3f}, {result.high:.3f}]  target {target}"
            f"  ({result.a_ms:.0f} ms v {result.b_ms:.0f} ms, load {result.load:.1f}"
            + "".join(f", {key} {value:.3g}" for key, value in extra.items())
            + ")",
            flush=True,
        )

    with np.load(folder / "exported" / "reference.npz") as file:
        views = np.resize(file["images"][:32], (batch, *file["images"].shape[1:]))
    float32 = OnnxBackend(folder / "exported" / "model-fp32.onnx")
    int8 = OnnxBackend(folder / "exported" / "model-int8-cpu.onnx")
    features = float32.run(views)["features"]

    cosine = least_cosine(int8.run(views)["features"], features)
    assert cosine >= 0.99, f"int8 must keep to its gate, cosine >= 0.99: {cosine}"
    row(
        f"int8 v fp32, both ONNX Runtime, batch {batch}",
        ">= 3",
        lambda: int8.run(views),
        lambda: float32.run(views),
        least_cosine=cosine,
    )
    if importlib.util.find_spec("torch"):
        theirs, transposes = torch_export(folder / "weights.pth", views, float32.metadata.preprocessing)
        error = relative_error(theirs(), features)
        assert error <= 1e-4, f"PyTorch must compute the same features: {error}"
        row(
            f"our fp32 graph v PyTorch's export, both ONNX Runtime, batch {batch}",
            ">= 1",
            lambda: float32.run(views),
            theirs,
            relative_error=error,
            their_transposes=transposes,
        )
    else:
        print("our fp32 graph v PyTorch's export: left out, torch is not installed", flush=True)
    images = arguments.batch * 2
    for name, runner in (("fp32", float32), ("int8", int8)):
        jpegs = folder / f"photos-{images}"
        jpegs.mkdir(exist_ok=True)
        for number in range(images):
            original = folder / "photos" / f"{number % PHOTOS:03d}.jpg"
            (jpegs / f"{number:04d}.jpg").write_bytes(original.read_bytes())
        row(
            f"{name}: JPEG files to features v the bare model, batch {batch}",
            ">= 0.9",
            end_to_end(runner, jpegs, batch),
            bare(runner, views, batch, images),
        )
    # Last: TensorFlow's threads would be there for all that comes after.
    predict = keras_predict(folder / "run", views)
    error = relative_error(predict(), features)
    assert error <= 1e-4, f"Keras must compute the same features: {error}"
    row(
        f"fp32 by ONNX Runtime v Keras' predict, batch {batch}",
        ">= 1.25",
        lambda: float32.run(views),
        predict,
        relative_error=error,
    )
    if arguments.json:
        facts = {
            "batch": batch,
            "machine": describe_machine().model_dump(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
