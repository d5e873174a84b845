"""Recognize the format of weights by their names, and rename them as in the released SwAV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swav_tf.plumbing.errors import UsageError
from swav_tf.weights.safe_pickle import PickledArray, WeightsError

SWAV_STD = (0.228, 0.224, 0.225)
IMAGENET_STD = (0.229, 0.224, 0.225)  # of all other libraries
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of all of them

_NORM_NAMES = {"_mean": "running_mean", "_variance": "running_var"}  # Paddle's, PyTorch's
_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")  # of DataParallel and torch.compile
# Prefixes of a whole model. Others may name an encoder, whose `fc` is a projection and not a classifier.
_MODELS = re.compile(r"(?:(?:(?:state_dict|model)(?:_ema)?|module|_orig_mod)(?:\.|$))+")
# Children of a torchvision ResNet in an nn.Sequential: 2 is the ReLU, 3 the pooling.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_BACKBONE_NAMES = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
# The start of the names of a ResNet's blocks, and whether it is a Sequential.
_ROOTS = (
    (re.compile(r"()(?:conv1|bn1)\."), False),
    (re.compile(r"((?:[^.]+\.)*?)layer[1-4]\.\d+\."), False),
    (re.compile(r"((?:[^.]+\.)*?)[4-7]\.\d+\.(?:conv|bn)\d\."), True),
)
# Of several networks in a file the first is used: what DINO evaluates, then trained networks, then averages of them.
_PREFERENCE = (r"teacher", r"^(?!.*(momentum|target|ema|encoder_k))", r"")
_LIBRARIES = {
    "": "ResNet with torchvision's names (torchvision, timm)",
    "backbone.": "solo-learn or lightly, backbone",
    "encoder.": "solo-learn, an older version, or SimSiam, backbone",
    "encoder_q.": "MoCo, query encoder",
    "base_encoder.": "MoCo v3, base encoder",
    "teacher.": "DINO, teacher",
    "teacher.backbone.": "DINO, teacher",
    "trunk._feature_blocks.": "VISSL, backbone",
    "_feature_blocks.": "VISSL, backbone",
}


@dataclass(frozen=True)
class Weights:
    """Weights of a known format."""

    format: str  # in words
    arrays: dict[str, np.ndarray]  # in PyTorch's layout, by the names of the released SwAV without `module.`
    left_out: tuple[str, ...] = ()  # tensors that are not part of the model
    std: tuple[float, float, float] | None = IMAGENET_STD  # that the images were normalized by; None: unknown
    mean: tuple[float, float, float] = IMAGENET_MEAN
    step: int = 0  # optimizer steps that the weights were trained for; 0: unknown


def recognize(tree: Any, source: str, *, prefix: str | None = None) -> Weights:
    """Return the weights in a tree, the nested dictionaries and arrays of the file `source`."""
    state, nested = _state_of(tree, source, prefix)
    is_model = prefix is None or _MODELS.fullmatch(prefix) is not None
    if any(name.rpartition(".")[2] in _NORM_NAMES for name in state):
        return _paddle(state, is_model)
    if _any(state, "projection_head.") and _any(state, _BACKBONE_NAMES):
        return Weights("SwAV training checkpoint" if nested else "SwAV as released", state, std=SWAV_STD)
    if set(state) == {"linear.weight", "linear.bias"}:
        return Weights("SwAV's linear probe", state, std=SWAV_STD)
    roots = {
        (match[1], is_sequential): None
        for name in state
        for pattern, is_sequential in _ROOTS
        if (match := pattern.match(name))
    }
    for wanted in _PREFERENCE:
        for root, is_sequential in roots:
            if re.search(wanted, root):
                return _backbone_of(state, root, is_model, is_sequential)
    raise WeightsError(
        f"{source} has tensors of an unknown format. It has {len(state)}: {_first(state)}. Known: ResNets of SwAV, its "
        "linear probe, torchvision, timm, PASSL, VISSL, solo-learn, lightly, MoCo, DINO and others, and the files of "
        "swav-tf. If the network is in a nested dictionary: swav-tf weights import --prefix NAME."
    )


def _backbone_of(
    state: dict[str, np.ndarray], root: str, is_model: bool, is_sequential: bool = False
) -> Weights:
    """Return the network below `root`, with a classifier if it is supervised; everything else is dropped."""
    arrays, left_out = {}, []
    supervised = is_model and root == "" and not _any(state, "projection_head.")
    for name, array in state.items():
        own = name.removeprefix(root)
        if is_sequential:
            index, _, rest = own.partition(".")
            own = f"{_SEQUENTIAL.get(index, index)}.{rest}"
        if not name.startswith(root):
            left_out.append(name)
        elif supervised and own in ("fc.weight", "fc.bias"):
            arrays[own.replace("fc.", "linear.")] = array
        elif own.startswith("fc."):  # the projection of MoCo, SimSiam
            left_out.append(name)
        else:
            arrays[own] = array
    library = _LIBRARIES.get(root, f"ResNet in {root[:-1]!r}")
    if is_sequential:
        library = "lightly, backbone" if root in ("", "backbone.") else f"Sequential ResNet in {root[:-1]!r}"
    return Weights(library, arrays, tuple(left_out))


def _paddle(state: dict[str, np.ndarray], is_model: bool) -> Weights:
    """Return weights of Paddle: dense layers (in, out), other names of running averages, a backbone in `encoder.`."""
    renamed = {}
    for name, array in state.items():
        stem, _, last = name.removeprefix("res_model.").removeprefix("encoder.").rpartition(".")
        renamed[f"{stem}.{_NORM_NAMES.get(last, last)}"] = array.T if array.ndim == 2 else array
    found = replace(
        _backbone_of(renamed, "", is_model), format="ResNet with Paddle's names (PASSL, PaddleClas)"
    )
    if _any(renamed, "projection_head."):
        return replace(found, format="PASSL, SwAV", std=SWAV_STD)
    return found


def _state_of(tree: Any, source: str, prefix: str | None) -> tuple[dict[str, np.ndarray], bool]:
    """Return the tensors of the model by their names without wrappers, and whether they were in a dictionary inside."""
    if not isinstance(tree, Mapping):
        raise WeightsError(
            f"{source} must contain a dictionary of tensors. It contains a {type(tree).__name__}."
        )
    found = dict(_arrays(tree, (), set()))
    if not found:
        raise WeightsError(f"{source} has no tensors, nor dictionaries with some. Its keys: {_first(tree)}.")
    # Counters of training steps are not used.
    states = {key: array for key, array in found.items() if not key[-1].endswith("num_batches_tracked")}
    if prefix is not None:
        start = _WRAPPERS.sub(r"\1", prefix.rstrip(".") + ".")
        named = {_WRAPPERS.sub(r"\1", ".".join(key)): array for key, array in states.items()}
        state = {name.removeprefix(start): array for name, array in named.items() if name.startswith(start)}
        if not state:
            raise UsageError(
                f"--prefix must be the start of names in {source}, up to a dot. Received: {prefix!r}. Available: "
                f"{_first(dict.fromkeys(name.partition('.')[0] for name in named))}."
            )
        return state, False
    folder = _folder_of(states)
    inside = len(folder)
    return {
        _WRAPPERS.sub(r"\1", ".".join(key[inside:])): array
        for key, array in states.items()
        if key[:inside] == folder
    }, inside > 0


def _folder_of(states: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the keys of the dictionary with the model: the tensors' own, `state_dict`, `model`, or all of them."""
    vissl = ("classy_state_dict", "base_model", "model")
    folders = {key[:-1] for key in states}
    usual = (folder for folder in (("state_dict",), ("model",)) if folder in folders)
    return vissl if (*vissl, "trunk") in folders else next(usual, ())


def _arrays(
    tree: Mapping[Any, Any], keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield the keys to each array in nested dictionaries, each read once, without those of optimizers."""
    seen.add(id(tree))  # a dictionary may contain itself
    for name, value in tree.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # Paddle: (the parameter's name, its array)
        if isinstance(value, PickledArray):
            value = value.array
        if isinstance(name, str) and isinstance(value, np.ndarray):
            yield (*keys, name), value
        elif not isinstance(name, str) or name.startswith("optim"):
            continue
        elif isinstance(value, Mapping) and id(value) not in seen:
            yield from _arrays(value, (*keys, name), seen)


def _any(names: Iterable[str], start: str | tuple[str, ...]) -> bool:
    return any(name.startswith(start) for name in names)


def _first(names: Iterable[Any]) -> str:
    """Return the first names. They come from an untrusted file, so unprintable characters are replaced."""
    known = [re.sub(r"[^\x20-\x7e]", "?", name)[:60] for name in names if isinstance(name, str)]
    return ", ".join(known[:6]) + (", ..." if len(known) > 6 else "") if known else "none"
