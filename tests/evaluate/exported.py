"""An exported folder of a network with one convolution, made without Keras."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import OnnxMetadata, Preprocessing
from swav_tf.recipe.data import Data

SIDE, FEATURES = 8, 6
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_exported(
    folder: Path,
    precisions: tuple[str, ...] = ("fp32", "int8"),
    *,
    weights: str = "a" * 64,
    wrong: bool = False,
) -> Path:
    """Write model-*.onnx, reference.npz and parity.json; with `wrong` the reference is of another network."""
    folder.mkdir(parents=True, exist_ok=True)
    for precision in precisions:
        write_onnx(folder / f"model-{precision}.onnx", precision, weights=weights)
    images = np.random.default_rng(1).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    features = OnnxBackend(folder / f"model-{precisions[0]}.onnx").run(images)["features"]
    if wrong:
        features = -features
    facts = {"weights_sha256": weights, "view": {"resize": SIDE, "crop": SIDE}, "outputs": ["features"]}
    np.savez(
        folder / "reference.npz",
        images=images,
        labels=np.arange(12) % 2,
        real=np.ones(12, bool),
        facts=np.array(json.dumps(facts)),
        features=features,
    )
    parity = {
        f"model-{precision}.onnx": {"passed": True, "knn": 0.9 - 0.01 * number, "knn_reference": 0.9,
                                    "knn_images": 12, "cosine_min": 0.999, "relative_error": {"features": 1e-6}}
        for number, precision in enumerate(precisions)
    }  # fmt: skip
    (folder / "parity.json").write_text(json.dumps({"files": parity}))
    return folder


def write_foreign(
    path: Path,
    *,
    batch: int | str = "batch",
    layout: str = "NCHW",
    outputs=("pooled",),
    external: bool = False,
    scale: float = 1,
) -> Path:
    """Write the same network as another tool would: normalized images in, and outputs named by its author."""
    constants = {name: values for name, values in make_constants().items() if name in ("kernel", "bias")}
    constants["kernel"] = constants["kernel"] * np.float32(scale)
    first = {"perm": [0, 3, 1, 2] if layout == "NHWC" else [0, 1, 2, 3]}
    nodes = [
        helper.make_node("Transpose", ["pixel_values"], ["e"], **first),
        helper.make_node("Conv", ["e", "kernel", "bias"], ["f"], pads=[1, 1, 0, 0], strides=[2, 2]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("GlobalAveragePool", ["g"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Relu", ["g"], ["map"]),
    ]
    sides = [SIDE, SIDE, 3] if layout == "NHWC" else [3, SIDE, SIDE]
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, *sides])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def make_constants() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "scale": np.array(1 / 255, np.float32),
        "mean": np.array(MEAN, np.float32),
        "std": 1 / np.array(STD, np.float32),
        "kernel": draw.normal(size=(FEATURES, 3, 3, 3)).astype(np.float32),
        "bias": draw.normal(size=FEATURES).astype(np.float32),
    }


def write_onnx(path: Path, precision: str, *, weights: str) -> None:
    constants = make_constants()
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Sub", ["b", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "std"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["e", "kernel", "bias"], ["f"], pads=[1, 1, 0, 0], strides=[2, 2]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("GlobalAveragePool", ["g"], ["h"]),
        helper.make_node("Flatten", ["h"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = OnnxMetadata(
        precision=precision,
        preprocessing=Preprocessing(resize=SIDE, crop=SIDE, mean=MEAN, std=STD, layout="NHWC", inside=True),
        recipe="tiny",
        step=3,
        data=Data(kind="digits"),
        dataset="digits",
        weights_sha256=weights,
        versions={},
        quantisation={"target": "cpu"} if precision == "int8" else None,
    )
    helper.set_model_props(model, facts.as_properties())
    onnx.save(model, path)
