"""From our weights, or anybody's, to a file that PyTorch users can load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from swav_tf.errors import UsageError
from swav_tf.weights.fitting import Fitted, fit
from swav_tf.weights.own import write_safetensors
from swav_tf.weights.read import STD_KEY, open_weights, read_own
from swav_tf.weights.torch_writer import write_torch_file

Names = Literal["swav", "torchvision", "swav_tf"]
NAMES: tuple[Names, ...] = ("swav", "torchvision", "swav_tf")
TORCH_ENDINGS = (".pth.tar", ".pth", ".pt")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        names: whose names its tensors have.
        tensors: how many there are.
        left_out: names of tensors that these names have no place for.
    """

    path: Path
    names: Names
    tensors: int
    left_out: tuple[str, ...]


def export_weights(source: Path | str, to: Path | str, *, names: Names | None = None) -> Exported:
    """Writes weights as a file for PyTorch (.pth.tar, .pth, .pt) or as .safetensors.

    Args:
        source: a run folder, a checkpoint, or any file that can be imported.
        to: a new file.
        names: `swav`: the released SwAV's, with head and prototypes; `torchvision`: a ResNet alone, the
            classifier of a probe or fine-tuning run as `fc`; `swav_tf`: our own names and layout. Unset:
            `swav_tf` for safetensors, else `swav`.

    Raises:
        UsageError: the file is there, has another ending, or the names have no place for the weights.
        WeightsError, CheckpointError: the source is damaged or of no known format.
    """
    source, to = Path(source), Path(to)
    as_torch = to.name.endswith(TORCH_ENDINGS)
    if not as_torch and to.suffix != ".safetensors":
        raise UsageError(
            f"-o must end in .safetensors or, for PyTorch, in {', '.join(TORCH_ENDINGS)}. Received: {to}."
        )
    if to.exists():
        raise UsageError(
            f"-o must be a new file: nothing is overwritten. Received: {to}, which is there already."
        )
    names = names or ("swav" if as_torch else "swav_tf")
    if names == "swav_tf":
        if as_torch:
            raise UsageError("Our own names are for .safetensors only: PyTorch has other layouts.")
        return _export_own(source, to)

    found = open_weights(source)
    fitted = fit(found, source)
    arrays, left_out = _swav(fitted, source) if names == "swav" else _torchvision(fitted, source)
    tensors = _with_counters(arrays, found.step)
    if as_torch:
        write_torch_file(tensors, to)
    else:
        write_safetensors(tensors, to, {"format": "pt"})
    return Exported(to, names, len(tensors), fitted.left_out + left_out)


def _export_own(source: Path, to: Path) -> Exported:
    left_out: tuple[str, ...] = ()
    own = read_own(source)
    if own is not None:  # as it is: it may have a backbone that PyTorch has no names for
        arrays, step, std = own.arrays, own.step, own.std
    else:
        found = open_weights(source)
        fitted = fit(found, source)
        arrays, step, std, left_out = fitted.own_arrays(source), found.step, found.std, fitted.left_out
    facts = {"step": str(step)} | ({STD_KEY: json.dumps(std)} if std else {})
    write_safetensors(arrays, to, facts)
    return Exported(to, "swav_tf", len(arrays), left_out)


def _swav(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Backbone, head and prototypes as released; or the released linear probe, a classifier alone."""
    sizes = fitted.sizes
    whole = sizes.network is not None and sizes.head is not None and sizes.classes is None
    if not whole and not (sizes.network is None and sizes.classes is not None):
        raise UsageError(
            f"The released SwAV's names are for a backbone with head and prototypes. {source} has: {sizes}. "
            "Give --names torchvision."
        )
    return {f"module.{name}": array for name, array in _arrays(fitted).items()}, ()


def _torchvision(fitted: Fitted, source: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The backbone by its names, a classifier as `fc`."""
    if fitted.sizes.network is None:
        raise UsageError(f"torchvision's names are for a backbone. {source} has: {fitted.sizes}.")
    arrays = _arrays(fitted)
    head = tuple(name for name in arrays if name.startswith(("projection_head.", "prototypes.")))
    kept = {name: array for name, array in arrays.items() if name not in head}
    return {name.replace("linear.", "fc."): array for name, array in kept.items()}, head


def _arrays(fitted: Fitted) -> dict[str, np.ndarray]:
    return {slot.torch: np.ascontiguousarray(fitted.tensors[slot.torch].float32()) for slot in fitted.slots}


def _with_counters(arrays: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """With the counter of training steps that PyTorch keeps beside each running variance."""
    whole: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        whole[name] = array
        if name.endswith("running_var"):
            whole[name.replace("running_var", "num_batches_tracked")] = np.asarray(step, np.int64)
    return whole
