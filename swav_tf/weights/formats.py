"""Recognize the format of weights by their names, and rename them as in the released SwAV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swav_tf.weights.safe_pickle import PickledArray, WeightsError

SWAV_STD = (0.228, 0.224, 0.225)
IMAGENET_STD = (0.229, 0.224, 0.225)  # of all other libraries

_NORM_NAMES = {"_mean": "running_mean", "_variance": "running_var"}  # Paddle's, PyTorch's
# Children of a torchvision ResNet in an nn.Sequential: 2 is the ReLU, 3 the pooling.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_BACKBONE_NAMES = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


@dataclass(frozen=True)
class Weights:
    """Weights of a known format."""

    format: str  # in words
    arrays: dict[str, np.ndarray]  # in PyTorch's layout, by the names of the released SwAV without `module.`
    left_out: tuple[
        str, ...
    ] = ()  # tensors that are not part of our model, such as a classifier of 1000 classes
    std: tuple[float, float, float] | None = IMAGENET_STD  # that the images were normalized by; None: unknown
    step: int = 0  # optimizer steps that the weights were trained for; 0: unknown


def recognize(tree: Any, source: str) -> Weights:
    """Return the weights in the dictionaries and arrays of the file `source`."""
    state, nested = _state_of(tree, source)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    # Counters of training steps are not used.
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}

    if (isinstance(tree, Mapping) and "classy_state_dict" in tree) or _any(state, "_feature_blocks."):
        return _backbone_of(state, "_feature_blocks.", "VISSL")
    if any(name.rpartition(".")[2] in _NORM_NAMES for name in state):
        return _paddle(state)
    if _any(state, "projection_head.") and _any(state, _BACKBONE_NAMES):
        return Weights("SwAV training checkpoint" if nested else "SwAV as released", state, std=SWAV_STD)
    if set(state) == {"linear.weight", "linear.bias"}:
        return Weights("SwAV's linear probe", state, std=SWAV_STD)
    if _any(state, _BACKBONE_NAMES):
        return _backbone_of(state, "", "ResNet with torchvision's names (torchvision, timm)", "")
    if _any(state, "backbone.0."):
        found = _backbone_of(state, "backbone.", "lightly")
        return replace(found, arrays={_from_sequential(name): array for name, array in found.arrays.items()})
    for prefix, library in (
        ("backbone.", "solo-learn or lightly"),
        ("encoder.", "solo-learn, an older version"),
    ):
        if _any(state, tuple(prefix + name for name in _BACKBONE_NAMES)):
            return _backbone_of(state, prefix, library)
    raise WeightsError(
        f"{source} has tensors of an unknown format. It has {len(state)}: {_first(state)}. Known: SwAV, its linear "
        "probe, torchvision, timm, PASSL, VISSL, solo-learn, lightly, and the files of swav-tf."
    )


def _backbone_of(
    state: dict[str, np.ndarray], prefix: str, library: str, what: str = ", backbone"
) -> Weights:
    """Return the backbone with the prefix; a classifier and the parts of another method are left out."""
    arrays = {
        name.removeprefix(prefix): array
        for name, array in state.items()
        if name.startswith(prefix) and not name.startswith(f"{prefix}fc.")
    }
    left_out = tuple(
        name for name in state if not (name.startswith(prefix) and name.removeprefix(prefix) in arrays)
    )
    return Weights(library + what, arrays, left_out)


def _paddle(state: dict[str, np.ndarray]) -> Weights:
    """Return weights of Paddle: dense layers (in, out), other names of running averages, a backbone in `encoder.`."""
    renamed = {}
    for name, array in state.items():
        stem, _, last = name.removeprefix("res_model.").removeprefix("encoder.").rpartition(".")
        renamed[f"{stem}.{_NORM_NAMES.get(last, last)}"] = array.T if array.ndim == 2 else array
    found = _backbone_of(renamed, "", "ResNet with Paddle's names (PASSL, PaddleClas)", "")
    if _any(renamed, "projection_head."):
        return replace(found, format="PASSL, SwAV", std=SWAV_STD)
    return found


def _from_sequential(name: str) -> str:
    index, _, rest = name.partition(".")
    return f"{_SEQUENTIAL.get(index, index)}.{rest}"


def _state_of(tree: Any, source: str) -> tuple[dict[str, np.ndarray], bool]:
    """Return the dictionary of the model's tensors, and whether it was inside another."""
    if not isinstance(tree, Mapping):
        raise WeightsError(
            f"{source} must contain a dictionary of tensors. It contains a {type(tree).__name__}."
        )
    if "classy_state_dict" in tree:
        model: Any = tree["classy_state_dict"]
        for key in ("base_model", "model"):
            model = model.get(key) if isinstance(model, Mapping) else None
        trunk, heads = (model.get(key) if isinstance(model, Mapping) else None for key in ("trunk", "heads"))
        if not isinstance(trunk, Mapping):
            raise WeightsError(f"{source} has a classy_state_dict without base_model, model and trunk.")
        return _arrays(trunk) | _arrays(heads if isinstance(heads, Mapping) else {}, "heads."), True
    for state in (tree, tree.get("state_dict"), tree.get("model")):
        if isinstance(state, Mapping) and (arrays := _arrays(state)):
            return arrays, state is not tree
    raise WeightsError(
        f"{source} has no tensors, nor a state_dict or model with some. Its keys: {_first(tree)}."
    )


def _arrays(state: Mapping[Any, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found = {}
    for name, value in state.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # Paddle: (the parameter's name, its array)
        if isinstance(value, PickledArray):
            value = value.array
        if isinstance(name, str) and isinstance(value, np.ndarray):
            found[prefix + name] = value
    return found


def _any(names: Iterable[str], start: str | tuple[str, ...]) -> bool:
    return any(name.startswith(start) for name in names)


def _first(names: Iterable[Any]) -> str:
    """Return the first names. They come from an untrusted file, so unprintable characters are replaced."""
    known = [re.sub(r"[^\x20-\x7e]", "?", name)[:60] for name in names if isinstance(name, str)]
    return ", ".join(known[:6]) + (", ..." if len(known) > 6 else "") if known else "none"
