"""Inputs of the golden files, and what is compared with them."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
from onnx import helper

from swav_tf import MultiCrop, load_recipe, open_source

GOLDEN = Path(__file__).parent

# Recipe to (seed, epoch, number of the image): the image is generated, or a digit for the recipe of the digits.
CROPS = {
    "demo": [(31, 0, 0), (31, 1, 0), (31, 0, 1436), (2**32 - 1, 27, 700)],  # 4 x 6 crops
    "small_images": [(31, 0, 3), (32, 199, 49_999)],  # 2 x 6
    "one_gpu": [(31, 0, 0), (31, 5, 1_281_166), (7, 0, 2)],  # 3 x 8
    "swav_400ep_2x224": [(31, 399, 9), (0, 0, 10)],  # 2 x 2
}
SIZES = [(375, 500), (32, 32), (120, 37), (64, 48), (480, 640), (20, 31)]


def generated_image(height, width, number):
    """An image of smooth waves, an edge and noise, uint8 (height, width, 3), by integers alone."""
    y, x, c = np.ogrid[:height, :width, :3]
    waves = (y * (3 + number % 5) + x * (2 + c) + number * 37) % 256
    waves = np.where(waves < 128, 2 * waves, 511 - 2 * waves)
    noise = ((y * 7919 + x * 104_729 + c * 1_299_709 + number) * 2_654_435_761 >> 13) % 32
    edge = np.where((x + y + 40 * c) % 97 < 48, 0, 64)
    return np.clip(waves * 5 // 8 + noise + edge, 0, 255).astype(np.uint8)


def crops_of(name):
    """All crops of a recipe's entries in CROPS, in order."""
    recipe = load_recipe(name)
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    digits = open_source(recipe.data) if name == "demo" else None
    found = []
    for seed, epoch, index in CROPS[name]:
        image = digits.read(index) if digits else generated_image(*SIZES[index % len(SIZES)], index % 1000)
        found += [c for group in multicrop(image, seed=seed, epoch=epoch, index=index) for c in group]
    return found


def opencv_canary():
    """A hash of what OpenCV alone makes of an image: it depends on IPP and on the CPU's instructions."""
    image = generated_image(300, 400, 5)
    taps, matrix = (
        np.array([0.21, 0.58, 0.21], np.float32),
        np.eye(3, 4, dtype=np.float32) * np.float32(1.237),
    )
    made = [cv2.resize(image, (w, h), interpolation=how) for w, h in ((224, 224), (97, 61), (641, 500))
            for how in (cv2.INTER_LINEAR, cv2.INTER_AREA)]  # fmt: skip
    made += [
        cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REPLICATE),
        cv2.transform(image, matrix),
    ]
    for sigma in (0.7, 1.3, 1.9):
        kernel = cv2.getGaussianKernel(13, sigma, cv2.CV_32F)
        made.append(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    made += [hsv, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)]
    return sha256(np.concatenate([array.ravel() for array in made]))


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def graph_census(model):
    """A graph without names of its own: each node with its type, attributes and where its inputs are from."""
    graph = model.graph
    known = {value.name: f"input {value.name}" for value in graph.input}
    known |= {t.name: f"constant {t.data_type} {list(t.dims)}" for t in graph.initializer}
    nodes = []
    for number, node in enumerate(graph.node):
        attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
        nodes.append([node.op_type, [known[name] for name in node.input if name], attributes])
        known |= {name: f"node {number} output {i}" for i, name in enumerate(node.output)}
    return {
        "opsets": sorted([opset.domain, opset.version] for opset in model.opset_import),
        "ir_version": model.ir_version,
        "inputs": [_signature(value) for value in graph.input],
        "outputs": [[*_signature(value), known[value.name]] for value in graph.output],
        "nodes": nodes,
    }


def _plain(value):
    return (
        value.decode()
        if isinstance(value, bytes)
        else list(value)
        if not isinstance(value, int | float)
        else value
    )


def _signature(value):
    kind = value.type.tensor_type
    return [value.name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]]


def write_random_resnet50(path):
    """A ResNet-50 backbone by torchvision's names, He-normal kernels."""
    from safetensors.numpy import save_file

    draw, tensors = np.random.default_rng(0), {}

    def layer(name, norm, outputs, inputs, side):
        scale = np.float32((2 / (inputs * side * side)) ** 0.5)
        tensors[f"{name}.weight"] = scale * draw.standard_normal((outputs, inputs, side, side), np.float32)
        for key, value in {"weight": 0.5, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            tensors[f"{norm}.{key}"] = np.full(outputs, value, np.float32)

    layer("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, (depth, inner) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", inner, inputs, 1)
            layer(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
            layer(f"{name}.conv3", f"{name}.bn3", 4 * inner, inner, 1)
            if block == 0:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", 4 * inner, inputs, 1)
            inputs = 4 * inner
    save_file(tensors, path)
