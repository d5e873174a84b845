"""The tensors of our networks: names and shapes in PyTorch and here, and which network a set of tensors is.

PyTorch keeps convolutions as (out, in, height, width) and dense layers as (out, in); Keras keeps
(height, width, in, out) and (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swav_tf.model.architectures import ARCHITECTURES, Architecture
from swav_tf.weights.formats import Weights
from swav_tf.weights.safe_pickle import WeightsError

_BACKBONE = ("conv1.", "bn1.", "layer")
# Names that show a ResNet of another kind.
_OTHER_RESNETS = (
    (r"^conv1\.\d+\.", "a ResNet with a deep stem (ResNet-C, ResNet-D)"),
    (r"\.se\.", "a ResNet with squeeze-and-excitation (SE-ResNet)"),
    (r"\.convs\.\d", "a Res2Net"),
)
TENSORS_OF_A_BLOCK = 10  # of the smallest
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # from PyTorch's layout to Keras', by number of axes


@dataclass(frozen=True)
class Slot:
    """One tensor of a network."""

    torch: str  # PyTorch's name, as in the released files without `module.`
    own: str  # our name, as in a checkpoint
    shape: tuple[int, ...]  # in PyTorch's layout


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model; None: it has no such part."""

    network: str | None  # a key of ARCHITECTURES
    width: int = 1
    head: tuple[int, int] | None = None  # units of the hidden layer, length of a projection
    prototypes: int | None = None
    classes: int | None = None  # of a linear classifier

    @property
    def feature_dim(self) -> int | None:
        """The channels of the last stage, F."""
        if self.network is None:
            return None
        return ARCHITECTURES[self.network].feature_dim(self.width)

    def __str__(self) -> str:
        parts = []
        if self.network is not None:
            wide = f" of width {self.width}" if self.width > 1 else ""
            parts.append(f"{self.network}{wide}, {self.feature_dim} features")
        if self.head is not None:
            parts.append(f"head {self.head[0]} -> {self.head[1]}")
        if self.prototypes is not None:
            parts.append(f"{self.prototypes} prototypes")
        if self.classes is not None:
            parts.append(f"linear classifier of {self.classes} classes")
        return ", ".join(parts)


def slots(sizes: Sizes, *, feature_dim: int = 0) -> tuple[Slot, ...]:
    """Return all tensors of a model of these sizes; `feature_dim` is F if it has no backbone."""
    found: list[Slot] = []
    if sizes.network is not None:
        found += _backbone(ARCHITECTURES[sizes.network], sizes.width)
    features = sizes.feature_dim or feature_dim
    hidden, projection = sizes.head or (0, 0)
    if sizes.head is not None:
        found += _dense("projection_head.0", "head/hidden", hidden, features)
        found += _norm("projection_head.1", "head/hidden_bn", hidden)
        found += _dense("projection_head.3", "head/projection", projection, hidden)
    if sizes.prototypes is not None:
        found.append(Slot("prototypes.weight", "prototypes/kernel", (sizes.prototypes, projection)))
    if sizes.classes is not None:
        found += _dense("linear", "classifier", sizes.classes, features)
    return tuple(found)


def _backbone(network: Architecture, width: int) -> Iterator[Slot]:
    inputs = network.channels[0] * width
    yield _convolution("conv1", "backbone/conv1", inputs, 3, 7 if network.stem == "imagenet" else 3)
    yield from _norm("bn1", "backbone/bn1", inputs)
    for stage, depth in enumerate(network.depths, start=1):
        inner, outputs = network.block_channels(stage - 1, width)
        bottleneck = network.block == "bottleneck"
        plan = [(1, inner), (3, inner), (1, outputs)] if bottleneck else [(3, inner), (3, outputs)]
        for block in range(depth):
            torch, own = f"layer{stage}.{block}", f"backbone/layer{stage}_{block}"
            before = inputs
            for number, (kernel, filters) in enumerate(plan, start=1):
                yield _convolution(f"{torch}.conv{number}", f"{own}_conv{number}", filters, before, kernel)
                yield from _norm(f"{torch}.bn{number}", f"{own}_bn{number}", filters)
                before = filters
            if block == 0 and (stage > 1 or inputs != outputs):
                yield _convolution(f"{torch}.downsample.0", f"{own}_downsample_conv", outputs, inputs, 1)
                yield from _norm(f"{torch}.downsample.1", f"{own}_downsample_bn", outputs)
            inputs = outputs


def _convolution(torch: str, own: str, filters: int, inputs: int, kernel: int) -> Slot:
    return Slot(f"{torch}.weight", f"{own}/kernel", (filters, inputs, kernel, kernel))


def _norm(torch: str, own: str, channels: int) -> Iterator[Slot]:
    yield Slot(f"{torch}.weight", f"{own}/gamma", (channels,))
    yield Slot(f"{torch}.bias", f"{own}/beta", (channels,))
    yield Slot(f"{torch}.running_mean", f"{own}/moving_mean", (channels,))
    yield Slot(f"{torch}.running_var", f"{own}/moving_variance", (channels,))


def _dense(torch: str, own: str, outputs: int, inputs: int) -> Iterator[Slot]:
    yield Slot(f"{torch}.weight", f"{own}/kernel", (outputs, inputs))
    yield Slot(f"{torch}.bias", f"{own}/bias", (outputs,))


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return our arrays with PyTorch's names and layout; the others stay as they are."""
    models = [*map(Sizes, ARCHITECTURES), Sizes(None, head=(0, 0), prototypes=0, classes=0)]
    known = {slot.own: slot for sizes in models for slot in slots(sizes)}
    found = {}
    for name, array in arrays.items():
        slot = known.get(name)
        if slot is not None and array.ndim == len(slot.shape):
            array = np.ascontiguousarray(array.transpose(np.argsort(_AXES[array.ndim])))
        found[name if slot is None else slot.torch] = array
    return found


# === From tensors to sizes ===


@dataclass(frozen=True)
class Fitted:
    """Tensors that are exactly those of a model."""

    sizes: Sizes
    arrays: Mapping[str, np.ndarray]
    slots: tuple[Slot, ...]
    left_out: tuple[str, ...]

    def by_torch_names(self) -> dict[str, np.ndarray]:
        """Return contiguous float32 arrays in PyTorch's layout."""
        return {slot.torch: np.ascontiguousarray(_float32(self.arrays[slot.torch])) for slot in self.slots}

    def by_own_names(self) -> dict[str, np.ndarray]:
        """Return float32 arrays with our names and layout."""
        return {
            slot.own: np.ascontiguousarray(array.transpose(_AXES[array.ndim]))
            for slot, array in zip(self.slots, self.by_torch_names().values(), strict=True)
        }


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # numbers beyond float32's range become infinite, and are reported
        return np.asarray(array, np.float32)


def fit(weights: Weights, source: Path, *, backbone_only: bool = False) -> Fitted:
    """Return the tensors in the file `source` as a complete model, or with `backbone_only` its backbone.

    Raises:
        WeightsError: tensors are missing, left over, misshapen or not finite; all of them are listed.
    """
    arrays, left_out = weights.arrays, weights.left_out
    if backbone_only:
        arrays = {name: array for name, array in arrays.items() if name.startswith(_BACKBONE)}
        left_out += tuple(name for name in weights.arrays if name not in arrays)
        if not arrays:
            raise WeightsError(f"{source} ({weights.format}) has no backbone.")
    sizes, wanted, wrong = compare(arrays)
    if wrong:
        advice = (
            ""
            if backbone_only
            else "\nTo import only the backbone: swav-tf weights import ... --backbone-only."
        )
        raise WeightsError(
            f"{source} ({weights.format}) does not fit {sizes}:\n  " + "\n  ".join(wrong) + advice
        )
    return Fitted(sizes, arrays, wanted, left_out)


def compare(arrays: Mapping[str, np.ndarray]) -> tuple[Sizes, tuple[Slot, ...], list[str]]:
    """Return the model that the shapes imply, its tensors, and all differences, one line each."""
    sizes = _sizes_of(arrays)
    matrix = arrays.get("linear.weight")
    # A classifier without a backbone implies the number of features.
    wanted = slots(sizes, feature_dim=matrix.shape[-1] if matrix is not None and matrix.ndim else 0)
    by_name = {slot.torch: slot for slot in wanted}
    lines = []
    for name in sorted(by_name.keys() | arrays.keys()):
        array, slot = arrays.get(name), by_name.get(name)
        if array is None:
            lines.append(f"missing    {name} {by_name[name].shape}")
        elif slot is None:
            lines.append(f"left over  {name} {array.shape}")
        elif array.shape != slot.shape:
            lines.append(f"misshapen  {name}: must be {slot.shape}, is {array.shape}")
        elif array.dtype.kind != "f":
            lines.append(f"no floats  {name} is {array.dtype}")
        elif not np.isfinite(_float32(array)).all():
            lines.append(f"not finite {name}")
    return sizes, wanted, lines


def _sizes_of(arrays: Mapping[str, np.ndarray]) -> Sizes:
    def size(*candidates: str) -> int:
        """Return the length of the first candidate that exists; else 1, which the check of shapes reports."""
        return next(
            (max(1, arrays[name].shape[0]) for name in candidates if name in arrays and arrays[name].ndim), 1
        )

    stem = size("bn1.weight", "conv1.weight")
    network, width, head, prototypes, classes = _network_of(arrays, stem), 1, None, None, None
    if network is not None:
        width = _width(network, stem)
    if any(name.startswith("projection_head.") for name in arrays):
        hidden = size("projection_head.0.bias", "projection_head.1.weight", "projection_head.0.weight")
        head = hidden, size("projection_head.3.bias", "projection_head.3.weight")
    if head is not None or "prototypes.weight" in arrays:
        prototypes = size("prototypes.weight")
    if "linear.weight" in arrays or "linear.bias" in arrays:
        classes = size("linear.bias", "linear.weight")
    return Sizes(network, width, head, prototypes, classes)


def _width(network: str, stem_channels: int) -> int:
    return max(1, stem_channels // ARCHITECTURES[network].channels[0])


def _network_of(arrays: Mapping[str, np.ndarray], stem_channels: int) -> str | None:
    """Return the network that shares most names and shapes with the tensors, None if they have no backbone."""
    backbone = {name for name in arrays if name.startswith(_BACKBONE)}
    if not backbone:
        return None
    lines = "\n".join(sorted(backbone))
    what = _unsupported(arrays, lines)
    networks = {
        name: {slot.torch: slot.shape for slot in slots(Sizes(name, _width(name, stem_channels)))}
        for name in ARCHITECTURES
    }

    def likeness(name: str) -> tuple[int, int]:
        """Return the likeness of names, then of shapes, as of the wide ResNets and of the stem for 32 pixels."""
        found = networks[name]
        return -len(found.keys() ^ backbone), sum(
            arrays[key].shape == shape for key, shape in found.items() if key in arrays
        )

    best = max(networks, key=likeness)
    depths = tuple(len(set(re.findall(rf"^layer{i}\.(\d+)\.", lines, re.MULTILINE))) for i in range(1, 5))
    kind = "bottleneck" if ".conv3." in lines else "basic"
    unknown = all((kind, depths) != (network.block, network.depths) for network in ARCHITECTURES.values())
    if what is None and unknown and all(depths) and -likeness(best)[0] >= TENSORS_OF_A_BLOCK:
        what = f"a ResNet of {'-'.join(map(str, depths))} {kind} blocks"
    if what is not None:
        raise WeightsError(f"This is {what}, which is not supported. Supported: {', '.join(ARCHITECTURES)}.")
    if len(networks[best].keys() & backbone) < len(networks[best]) / 2:
        raise WeightsError(
            f"The backbone must be one of {', '.join(ARCHITECTURES)}. Received {len(backbone)} tensors that "
            f"fit none of them: {', '.join(sorted(backbone)[:6])}, ..."
        )
    return best


def _unsupported(arrays: Mapping[str, np.ndarray], names: str) -> str | None:
    """Return which ResNet of other libraries the tensors are, in words, None if of none; names are lines."""
    for pattern, what in _OTHER_RESNETS:
        if re.search(pattern, names, re.MULTILINE):
            return what
    channels = [
        (arrays.get(name.replace("conv2", "conv1")), arrays[name])
        for name in re.findall(r"^layer\d\.\d+\.conv2\.weight$", names, re.MULTILINE)
    ]
    grouped = [a.ndim == b.ndim == 4 and b.shape[1] < a.shape[0] for a, b in channels if a is not None]
    return "a ResNet with grouped convolutions (ResNeXt)" if grouped and all(grouped) else None
