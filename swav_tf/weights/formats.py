"""Whose weights a file holds, told by its keys; and the same weights under the released SwAV's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from swav_tf.weights.safe_pickle import PickledArray
from swav_tf.weights.tensors import Tensor, WeightsError
from swav_tf.weights.torch_files import TorchView

SWAV_STD = (0.228, 0.224, 0.225)
IMAGENET_STD = (0.229, 0.224, 0.225)  # what everybody else normalises by

_NORM_NAMES = {"_mean": "running_mean", "_variance": "running_var"}  # Paddle's, PyTorch's
# Children of a torchvision ResNet in an nn.Sequential: 2 is the ReLU, 3 the pooling.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_BACKBONE_NAMES = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
# Dictionaries that a training program keeps its model's state in.
_NESTS = ("state_dict", "model")


@dataclass(frozen=True)
class Recognised:
    """A file that is understood.

    Attributes:
        format: whose it is, in words.
        tensors: in PyTorch's layout, by the names of the released SwAV without `module.`.
        left_out: names of tensors that are no part of our model, such as a classifier on 1000 classes.
        std: channel deviations that the format's images are normalised by, where the format says.
        step: optimiser steps that the weights were trained for, where that is known.
    """

    format: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    std: tuple[float, float, float] | None = IMAGENET_STD
    step: int = 0


def recognise(tree: Any, source: str) -> Recognised:
    """Whose weights a tree of dictionaries and tensors holds.

    Args:
        tree: as the readers of this package give it.
        source: the file's name, for messages.

    Raises:
        WeightsError: it is of no known format.
    """
    state, nested = _state_of(tree, source)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # Counters of training steps, one a batch normalisation: nothing here uses them.
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

    if (isinstance(tree, Mapping) and "classy_state_dict" in tree) or _some(state, "_feature_blocks."):
        return _backbone_of(state, "_feature_blocks.", "VISSL")
    if any(name.rpartition(".")[2] in _NORM_NAMES for name in state):
        return _paddle(state)
    if _some(state, "projection_head.") and _some(state, _BACKBONE_NAMES):
        return Recognised("SwAV training checkpoint" if nested else "SwAV as released", state, std=SWAV_STD)
    if set(state) == {"linear.weight", "linear.bias"}:
        return Recognised("SwAV's linear probe", state, std=SWAV_STD)
    if _some(state, _BACKBONE_NAMES):
        return _torchvision(state)
    if _some(state, "backbone.0."):
        found = _backbone_of(state, "backbone.", "lightly")
        return replace(found, tensors={_from_sequential(k): t for k, t in found.tensors.items()})
    for prefix, whose in (
        ("backbone.", "solo-learn or lightly"),
        ("encoder.", "solo-learn, an older version"),
    ):
        if _some(state, tuple(prefix + name for name in _BACKBONE_NAMES)):
            return _backbone_of(state, prefix, whose)
    raise WeightsError(
        f"{source} holds tensors of no format that is known here. It has {len(state)}: "
        f"{_few(state)}. Known: SwAV, its linear probe, torchvision, timm, PASSL, VISSL, solo-learn, lightly, "
        "and what swav-tf writes."
    )


def _torchvision(state: dict[str, Tensor]) -> Recognised:
    classifier = tuple(name for name in state if name.startswith("fc."))
    tensors = {name: tensor for name, tensor in state.items() if name not in classifier}
    return Recognised("ResNet by torchvision's names (torchvision, timm)", tensors, classifier)


def _backbone_of(state: dict[str, Tensor], prefix: str, whose: str) -> Recognised:
    """The backbone that has the prefix; the rest is of another method, and left out."""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    classifier = [f"{prefix}fc.weight", f"{prefix}fc.bias"]
    for name in classifier:
        tensors.pop(name.removeprefix(prefix), None)
    left_out = tuple(name for name in state if not name.startswith(prefix) or name in classifier)
    return Recognised(f"{whose}, backbone", tensors, left_out)


def _paddle(state: dict[str, Tensor]) -> Recognised:
    """PASSL: the backbone below `encoder.`, dense layers (in, out), other names of running averages."""
    tensors = {}
    for name, tensor in state.items():
        name = name.removeprefix("res_model.").removeprefix("encoder.")
        stem, _, last = name.rpartition(".")
        if len(tensor.shape) == 2:
            tensor = tensor.transposed()
        tensors[f"{stem}.{_NORM_NAMES.get(last, last)}"] = tensor
    classifier = tuple(name for name in tensors if name.startswith("fc."))
    left_out = tuple(tensors.pop(name).name for name in classifier)
    if _some(tensors, "projection_head."):
        return Recognised("PASSL, SwAV", tensors, left_out, SWAV_STD)
    return Recognised("ResNet by Paddle's names (PASSL, PaddleClas)", tensors, left_out)


def _from_sequential(name: str) -> str:
    index, _, rest = name.partition(".")
    return f"{_SEQUENTIAL.get(index, index)}.{rest}"


# === The dictionary of tensors in what a program saved ===


def _state_of(tree: Any, source: str) -> tuple[dict[str, Tensor], bool]:
    """The dictionary that holds the model's tensors, and whether it lay inside another."""
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{source} must hold a dictionary of tensors. It holds a {type(tree).__name__}.")
    if "classy_state_dict" in tree:
        model = tree["classy_state_dict"]
        for key in ("base_model", "model"):
            model = model.get(key) if isinstance(model, Mapping) else None
        if not isinstance(model, Mapping) or not isinstance(model.get("trunk"), Mapping):
            raise WeightsError(f"{source} has a classy_state_dict without base_model, model and trunk.")
        heads = model.get("heads")
        return _tensors(model["trunk"]) | _tensors(
            heads if isinstance(heads, Mapping) else {}, "heads."
        ), True
    for place in (None, *_NESTS):
        state = tree if place is None else tree.get(place)
        if isinstance(state, Mapping) and (tensors := _tensors(state)):
            return tensors, place is not None
    raise WeightsError(f"{source} holds no tensors where they are looked for. Its keys: {_few(tree)}.")


def _tensors(state: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # Paddle: (the parameter's name, its array)
        if isinstance(value, (TorchView, PickledArray)):
            value = value.tensor
        if isinstance(name, str) and isinstance(value, Tensor):
            found[prefix + name] = replace(value, name=prefix + name)
    return found


def _some(state: Iterable[str], start: str | tuple[str, ...]) -> bool:
    return any(name.startswith(start) for name in state)


def _few(names: Iterable[Any]) -> str:
    """The first names, what is no printable name left out: they come from a stranger's file."""
    known = [re.sub(r"[^\x20-\x7e]", "?", name)[:60] for name in names if isinstance(name, str)]
    return ", ".join(known[:6]) + (", ..." if len(known) > 6 else "") if known else "none"
