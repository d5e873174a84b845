"""Random weights in the released layout, and what a network of NumPy alone makes of them."""

import ast
from pathlib import Path

import numpy as np

KEYS = Path(__file__).parent / "data" / "released_rn50_keys.tsv"


def released_keys() -> dict[str, tuple[tuple[int, ...], str]]:
    """Name to (shape, dtype) of the released ResNet-50, in its order, without `module.`."""
    lines = KEYS.read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return {name: (ast.literal_eval(shape), dtype.removeprefix("torch.")) for name, shape, dtype in rows}


def random_state(width: int = 1, hidden: int = 2048, dim: int = 128, prototypes: int = 3000, seed: int = 0):
    """A state dictionary of a trained-like network: no two tensors equal, activations of order 1."""
    rng = np.random.default_rng(seed)

    def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name == "prototypes.weight":
            return (prototypes, dim)
        if name.startswith("projection_head.3"):
            return (dim, hidden)[: len(shape)]
        if name.startswith("projection_head"):
            return (hidden, 2048 * width)[: len(shape)]
        wide = [size * width for size in shape[:2]] + list(shape[2:])
        return tuple([wide[0], 3, *wide[2:]] if name == "conv1.weight" else wide)

    state = {}
    for name, (released, dtype) in released_keys().items():
        shape = shape_of(name, released)
        if dtype == "int64":
            value = np.asarray(7, np.int64)
        elif len(shape) > 1:
            value = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith("running_var") or name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            value = rng.normal(0, 0.1, shape).astype(np.float32)
        state[name] = value
    return state


# === The network, in float64, straight from PyTorch's names and layout ===


def convolve(x, kernel, stride=1):
    """x (n, c, h, w), kernel (f, c, k, k), zero padding k // 2: columns, then one matrix product."""
    pad = kernel.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[
        :, :, ::stride, ::stride
    ]
    return np.einsum("nchwij,fcij->nfhw", windows, kernel.astype(np.float64), optimize=True)


def normalise(x, state, name):
    """Batch normalisation by running averages; channels on axis 1."""
    column = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias, mean, var = (
        state[f"{name}.{key}"].astype(np.float64).reshape(column)
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def relu(x):
    return np.maximum(x, 0)


def features(state, images):
    """Normalised images (n, 3, h, w) to (n, F): ResNet v1.5, the stride on the 3x3."""
    x = relu(normalise(convolve(images.astype(np.float64), state["conv1.weight"], 2), state, "bn1"))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(normalise(convolve(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"))
            y = relu(normalise(convolve(y, state[f"{name}.conv2.weight"], stride), state, f"{name}.bn2"))
            y = normalise(convolve(y, state[f"{name}.conv3.weight"]), state, f"{name}.bn3")
            if block == 0:
                x = normalise(
                    convolve(x, state[f"{name}.downsample.0.weight"], stride), state, f"{name}.downsample.1"
                )
            x = relu(x + y)
    return x.mean((2, 3))


def project(state, found):
    """Features (n, F) to projections (n, D) of length 1 and scores (n, K)."""

    def dense(x, name):
        return x @ state[f"{name}.weight"].astype(np.float64).T + state[f"{name}.bias"]

    hidden = relu(normalise(dense(found, "projection_head.0"), state, "projection_head.1"))
    projections = dense(hidden, "projection_head.3")
    projections /= np.linalg.norm(projections, axis=1, keepdims=True)
    return projections, projections @ state["prototypes.weight"].astype(np.float64).T
