"""A file's tensors held against the model that their shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swav_tf.weights.formats import Recognised
from swav_tf.weights.layout import Sizes, Slot, problems, sizes_of, slots
from swav_tf.weights.tensors import FLOATS, Tensor, WeightsError

_BACKBONE = ("conv1.", "bn1.", "layer")


@dataclass(frozen=True)
class Fitted:
    """Tensors that are known to be all that their model has, no more and no less."""

    sizes: Sizes
    tensors: Mapping[str, Tensor]
    slots: tuple[Slot, ...]
    left_out: tuple[str, ...]

    def own_arrays(self, source: Path) -> dict[str, np.ndarray]:
        """Float32 arrays by our names and in our layout.

        Raises:
            WeightsError: some are not finite; all of them are listed.
        """
        arrays = {slot.own: slot.to_own(self.tensors[slot.torch].float32()) for slot in self.slots}
        broken = [slot.torch for slot in self.slots if not np.isfinite(arrays[slot.own]).all()]
        if broken:
            raise WeightsError(
                f"{source} has numbers that are not finite in {len(broken)} tensors:\n  "
                + "\n  ".join(broken)
            )
        return arrays


def fit(found: Recognised, source: Path, *, backbone_only: bool = False) -> Fitted:
    """Holds a file's tensors against those of the model that its shapes tell.

    Args:
        found: the file.
        source: its name, for messages.
        backbone_only: take the backbone, whatever else there is or is missing.

    Raises:
        WeightsError: tensors are missing, left over or misshapen; all of them are listed.
    """
    tensors, left_out = found.tensors, found.left_out
    if backbone_only:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)}
        left_out += tuple(tensor.name for name, tensor in found.tensors.items() if name not in tensors)
        if not tensors:
            raise WeightsError(f"{source} ({found.format}) has no backbone.")
    sizes, wanted, wrong = wrong_with(tensors)
    if wrong:
        advice = "" if backbone_only else "\nTo take the backbone alone: --backbone-only."
        raise WeightsError(
            f"{source} ({found.format}) does not fit {sizes}:\n  " + "\n  ".join(wrong) + advice
        )
    return Fitted(sizes, tensors, wanted, left_out)


def wrong_with(tensors: Mapping[str, Tensor]) -> tuple[Sizes, tuple[Slot, ...], list[str]]:
    """The model that tensors by PyTorch's names tell, what it consists of, and what is wrong with them.

    Raises:
        WeightsError: they are no network that is known here.
    """
    sizes = sizes_of(tensors)
    matrix = tensors.get("linear.weight")
    # A classifier alone says itself how many features it takes.
    wanted = slots(sizes, feature_dim=matrix.shape[-1] if matrix is not None and matrix.shape else None)
    return sizes, wanted, problems(tensors, wanted, FLOATS)
