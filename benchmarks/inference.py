"""Features by exported files compared with Keras, with PyTorch's export, and from JPEG files.

    python -m benchmarks.inference [--json FILE] [--pairs 10] [--batch 32] [--cache FOLDER]

ResNet-50 at 224 pixels with random weights, batch normalization adapted to photos. All rows are wall time on all cores,
after a check that both sides compute the same. The network is exported once (some minutes, 4 GB) and kept in the cache
folder.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Rows, argument_parser, compare, photos
from evaluate.backends import open_model
from evaluate.backends.backend import Backend
from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.features import extract_features
from evaluate.images import open_images

PHOTOS = 128
WARM_UP_BATCHES = 8
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
        if name.endswith("_bn3/gamma"):
            # As small as training makes them: errors do not grow from block to block.
            variable.assign(np.full(variable.shape, 0.2, np.float32))
    views = np.stack([evaluation_view(decode(file), recipe.data.evaluation) for file in files[:32]])
    draw = np.random.default_rng(0)
    for _ in range(WARM_UP_BATCHES):  # else activations grow from block to block
        batch = tf.constant(views[draw.choice(len(views), 16, replace=False)])
        model.backbone(model.normalize(batch), training=True)
    run = folder / "run"
    CheckpointStore(run / "checkpoints", kind="pretrain").write(0, capture(model, batch_size=16), {})
    save_recipe(recipe, run / "config.yaml")
    settings = ExportSettings(precisions=("fp32", "int8"), reference_images=32, calibration_images=32)
    export_run(run, folder / "exported", settings)
    (folder / "weights.pth").unlink(missing_ok=True)
    export_weights(run, folder / "weights.pth", names="swav")
    (folder / READY).touch()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def keras_predict(run: Path, views: np.ndarray) -> Callable[[], np.ndarray]:
    """Return Keras' own way: the backbone's `predict` of normalized images."""
    from swav_tf.training.build import load_swav

    model, _ = load_swav(run)
    normalized = model.normalize(views).numpy()
    return lambda: model.backbone.predict(normalized, batch_size=len(views), verbose=0)


def torch_export(
    weights: Path, views: np.ndarray, model: OnnxBackend
) -> tuple[Callable[[], np.ndarray], int]:
    """Return the same network exported by PyTorch, run by ONNX Runtime, and its number of Transpose nodes."""
    import onnx
    import torch

    from benchmarks.torch_swav import FeaturesOfBytes

    how = model.metadata.preprocessing
    network = FeaturesOfBytes(str(weights), mean=how.mean, std=how.std)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network, (torch.from_numpy(views[:2]),), str(path), opset_version=17, input_names=["images"],
            output_names=["features"], dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}}, dynamo=False,
        )  # fmt: skip
        transposes = sum(node.op_type == "Transpose" for node in onnx.load(path).graph.node)
        session = open_session(path)
    return lambda: session.run(["features"], {"images": views})[0], transposes


def features_of_files(model: Backend, folder: Path, batch: int) -> None:
    """Do what `swav-tf features` does with JPEG files."""
    images = open_images(str(folder), like=model.data, kind="images")
    with tempfile.TemporaryDirectory() as place:
        extract_features(model, images, Path(place) / "features.npz", batch_size=batch)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark_resnet50"))
    parser.add_argument("--prepare", action="store_true", help="only fill the cache folder")
    arguments = parser.parse_args()
    folder = arguments.cache
    if arguments.prepare:
        prepare(folder)
        return
    if not (folder / READY).exists():
        # In a process of its own, whose memory is returned.
        command = [sys.executable, "-m", "benchmarks.inference", "--prepare", "--cache", str(folder)]
        subprocess.run(command, check=True)
    measure(folder, Rows(arguments.json), batch=arguments.batch, pairs=arguments.pairs)


def measure(folder: Path, rows: Rows, *, batch: int, pairs: int) -> None:
    def row(name: str, target: str, ours: Callable[[], Any], other: Callable[[], Any], **extra: Any) -> None:
        found = compare(ours, other, pairs=pairs, clock=time.perf_counter, pause_seconds=0.1)
        remark = "".join(f", {key} {value:.3g}" for key, value in extra.items())
        rows.add(f"{name}, batch {batch}", target, found | extra, remark=remark)

    with np.load(folder / "exported" / "reference.npz") as file:
        views = np.resize(file["images"][:32], (batch, *file["images"].shape[1:]))
    float32 = OnnxBackend(folder / "exported" / "model-fp32.onnx")
    int8 = OnnxBackend(folder / "exported" / "model-int8-cpu.onnx")
    features = float32.run(views)["features"]

    def fp32() -> object:
        return float32.run(views)

    found = int8.run(views)["features"]
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(features, axis=1)
    cosine = float((np.sum(found * features, axis=1) / lengths).min())
    assert cosine >= 0.99, f"int8 must pass its gate, cosine >= 0.99: {cosine}"
    row("int8 vs. fp32, both ONNX Runtime", ">= 3", lambda: int8.run(views), fp32, least_cosine=cosine)
    if importlib.util.find_spec("torch"):
        other, transposes = torch_export(folder / "weights.pth", views, float32)
        error = relative_error(other(), features)
        assert error <= 1e-4, f"PyTorch must compute the same features: {error}"
        facts = {"relative_error": error, "their_transposes": transposes}
        row("our fp32 graph vs. PyTorch's export, both ONNX Runtime", ">= 1", fp32, other, **facts)
    else:
        print("our fp32 graph vs. PyTorch's export: left out, torch is not installed", flush=True)
    images, jpegs = 2 * batch, folder / f"photos-{2 * batch}"
    jpegs.mkdir(exist_ok=True)
    for number in range(images):
        original = folder / "photos" / f"{number % PHOTOS:03d}.jpg"
        (jpegs / f"{number:04d}.jpg").write_bytes(original.read_bytes())
    for name, model in (("fp32", float32), ("int8", int8)):
        from_files = partial(features_of_files, open_model(model.facts.path), jpegs, batch)
        alone = partial(lambda model: [model.run(views) for _ in range(images // batch)], model)
        row(f"{name}: JPEG files to features vs. the bare model", ">= 0.9", from_files, alone)
    # Last: TensorFlow's threads would disturb the other rows.
    predict = keras_predict(folder / "run", views)
    error = relative_error(predict(), features)
    assert error <= 1e-4, f"Keras must compute the same features: {error}"
    row("fp32 by ONNX Runtime vs. Keras' predict", ">= 1.25", fp32, predict, relative_error=error)


if __name__ == "__main__":
    main()
