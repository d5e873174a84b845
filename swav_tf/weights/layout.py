"""The tensors of our networks: PyTorch's name and shape beside our own.

PyTorch keeps convolutions as (out, in, height, width) and dense layers as (out, in); Keras keeps
(height, width, in, out) and (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from swav_tf.model.architectures import ARCHITECTURES, EXPANSION, STEM_CHANNELS, Architecture
from swav_tf.weights.tensors import Tensor, WeightsError


@dataclass(frozen=True)
class Slot:
    """One tensor of a network.

    Attributes:
        torch: PyTorch's name, as in the released files without `module.`.
        own: our name, as in a checkpoint.
        shape: PyTorch's.
        kind: what it is, and so how its axes are turned.
    """

    torch: str
    own: str
    shape: tuple[int, ...]
    kind: Literal["convolution", "dense", "vector"]

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape in our layout."""
        return tuple(self.shape[axis] for axis in self._axes)

    @property
    def _axes(self) -> tuple[int, ...]:
        return {"convolution": (2, 3, 1, 0), "dense": (1, 0), "vector": (0,)}[self.kind]

    def to_own(self, array: np.ndarray) -> np.ndarray:
        """From PyTorch's layout to ours."""
        return np.ascontiguousarray(array.transpose(self._axes))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """From our layout to PyTorch's."""
        return np.ascontiguousarray(array.transpose(np.argsort(self._axes)))


@dataclass(frozen=True)
class Sizes:
    """What a set of weights says of its model; None: it has no such part.

    Attributes:
        network: a key of ARCHITECTURES, or None without a backbone.
        width: multiplies the network's channels.
        head: units of the hidden layer, length of a projection.
        prototypes: K.
        classes: of a linear classifier.
    """

    network: str | None
    width: int = 1
    head: tuple[int, int] | None = None
    prototypes: int | None = None
    classes: int | None = None

    @property
    def feature_dim(self) -> int | None:
        """F, the channels of the last stage."""
        if self.network is None:
            return None
        network = ARCHITECTURES[self.network]
        return network.channels[-1] * EXPANSION[network.block] * self.width

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


def slots(sizes: Sizes, *, feature_dim: int | None = None) -> tuple[Slot, ...]:
    """All tensors of a model of these sizes.

    Args:
        sizes: of the model.
        feature_dim: F, where there is no backbone to tell.
    """
    found: list[Slot] = []
    if sizes.network is not None:
        found += _backbone(ARCHITECTURES[sizes.network], sizes.width)
    features = sizes.feature_dim or feature_dim or 0
    projection = 0
    if sizes.head is not None:
        hidden, projection = sizes.head
        found += _dense("projection_head.0", "head/hidden", hidden, features)
        found += _norm("projection_head.1", "head/hidden_bn", hidden)
        found += _dense("projection_head.3", "head/projection", projection, hidden)
    if sizes.prototypes is not None:
        found.append(Slot("prototypes.weight", "prototypes/kernel", (sizes.prototypes, projection), "dense"))
    if sizes.classes is not None:
        found += _dense("linear", "classifier", sizes.classes, features)
    return tuple(found)


def _stem_kernel(network: Architecture) -> int:
    return 7 if network.stem == "imagenet" else 3


def _backbone(network: Architecture, width: int) -> Iterator[Slot]:
    inputs = STEM_CHANNELS * width
    yield _convolution("conv1", "backbone/conv1", inputs, 3, _stem_kernel(network))
    yield from _norm("bn1", "backbone/bn1", inputs)
    for stage, (depth, channels) in enumerate(zip(network.depths, network.channels, strict=True), start=1):
        inner = channels * width
        outputs = inner * EXPANSION[network.block]
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
    return Slot(f"{torch}.weight", f"{own}/kernel", (filters, inputs, kernel, kernel), "convolution")


def _norm(torch: str, own: str, channels: int) -> Iterator[Slot]:
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    for theirs, ours in names.items():
        yield Slot(f"{torch}.{theirs}", f"{own}/{ours}", (channels,), "vector")


def _dense(torch: str, own: str, outputs: int, inputs: int) -> Iterator[Slot]:
    yield Slot(f"{torch}.weight", f"{own}/kernel", (outputs, inputs), "dense")
    yield Slot(f"{torch}.bias", f"{own}/bias", (outputs,), "vector")


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Our own arrays by PyTorch's names and in its layout; names that PyTorch has none for stay."""
    parts = Sizes(network=None, head=(0, 0), prototypes=0, classes=0)
    known = {slot.own: slot for name in ARCHITECTURES for slot in slots(Sizes(network=name))}
    known |= {slot.own: slot for slot in slots(parts)}
    found = {}
    for name, array in arrays.items():
        slot = known.get(name)
        if slot is not None and array.ndim == len(slot.shape):
            found[slot.torch] = Tensor.of(name, slot.to_torch(array))
        else:
            found[slot.torch if slot else name] = Tensor.of(name, array)
    return found


# === From tensors to sizes ===


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """The sizes that PyTorch names and shapes tell, of whole or damaged sets.

    Raises:
        WeightsError: they are no ResNet that we build.
    """
    names = set(tensors)

    def size(axis: int, *candidates: str) -> int:
        """From the first candidate that is there; 1 without any, which the check of shapes will tell."""
        for name in candidates:
            if name in tensors and len(tensors[name].shape) > axis:
                return max(1, tensors[name].shape[axis])
        return 1

    head = None
    if any(name.startswith("projection_head.") for name in names):
        head = (
            size(0, "projection_head.0.bias", "projection_head.1.weight", "projection_head.0.weight"),
            size(0, "projection_head.3.bias", "projection_head.3.weight"),
        )
    return Sizes(
        network=(network := _network_of(tensors)),
        width=max(1, size(0, "bn1.weight", "conv1.weight") // STEM_CHANNELS) if network else 1,
        head=head,
        prototypes=size(0, "prototypes.weight") if "prototypes.weight" in names or head else None,
        classes=size(0, "linear.bias", "linear.weight") if names & {"linear.weight", "linear.bias"} else None,
    )


def _network_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The network that shares most names with the tensors, or None where they have no backbone."""
    backbone = {name for name in tensors if name.startswith(("conv1.", "bn1.", "layer"))}
    if not backbone:
        return None
    kernel = tensors["conv1.weight"].shape[-1:] if "conv1.weight" in tensors else ()

    def likeness(name: str) -> tuple[int, bool]:
        # Names that are in one and not in the other count against it; the stem tells 18 from 18_32px.
        own = {slot.torch for slot in slots(Sizes(network=name))}
        return -len(own ^ backbone), kernel == (_stem_kernel(ARCHITECTURES[name]),)

    best = max(ARCHITECTURES, key=likeness)
    wanted = {slot.torch for slot in slots(Sizes(network=best))}
    if len(wanted & backbone) < len(wanted) / 2:
        raise WeightsError(
            f"The backbone must be one of {', '.join(ARCHITECTURES)}. Received {len(backbone)} tensors that "
            f"fit none of them: {', '.join(sorted(backbone)[:6])}, ..."
        )
    return best


def problems(tensors: Mapping[str, Tensor], wanted: tuple[Slot, ...], floats: tuple[str, ...]) -> list[str]:
    """What is missing, left over, misshapen, or no number with a fraction; one line each."""
    by_name = {slot.torch: slot for slot in wanted}
    lines = []
    for name in sorted(by_name.keys() | tensors.keys()):
        tensor, slot = tensors.get(name), by_name.get(name)
        if tensor is None and slot is not None:
            lines.append(f"missing    {name} {slot.shape}")
        elif tensor is not None and slot is None:
            lines.append(f"left over  {tensor.name} {tensor.shape}")
        elif tensor is not None and slot is not None and tensor.shape != slot.shape:
            lines.append(f"misshapen  {tensor.name}: must be {slot.shape}, is {tensor.shape}")
        elif tensor is not None and tensor.dtype not in floats:
            lines.append(f"no floats  {tensor.name} is {tensor.dtype}")
    return lines
