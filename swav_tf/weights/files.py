"""Open weights of any kind: files of PyTorch and Paddle, safetensors, and our own run folders and checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write, file_sha256
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.checkpoint import ARRAYS, FACTS, CheckpointError, CheckpointStore
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.weights.formats import IMAGENET_MEAN, Weights, recognize
from swav_tf.weights.layout import as_torch
from swav_tf.weights.safe_pickle import WeightsError, from_bytes, read_pickle
from swav_tf.weights.torch_files import LEGACY_START, read_torch_legacy, read_torch_zip

PARTS = ("backbone", "head", "prototypes", "classifier")
MEAN_KEY, STD_KEY = "mean", "std"  # in the metadata of our safetensors files

_DTYPES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def open_weights(path: Path, *, prefix: str | None = None) -> Weights:
    """Read the weights in a file or folder and recognize their format; `prefix` as in `import_weights`.

    Raises:
        UsageError: there is no such file, it is a folder without a run or checkpoint, or no name has the prefix.
        WeightsError: it is damaged, unsafe or of an unknown format.
        CheckpointError: our own checkpoint is damaged.
    """
    own = read_own(path)
    if own is not None and prefix is not None:
        raise UsageError(f"--prefix is for files of other libraries. Received: {path}, {own.format}.")
    if own is not None:
        return replace(own, arrays=as_torch(own.arrays))
    if not _is_safetensors(path):
        return recognize(read_tree(path), str(path), prefix=prefix)
    tree, metadata = _read_safetensors(path)
    found = recognize(tree, str(path), prefix=prefix)
    with contextlib.suppress(WeightsError):  # other libraries may use the keys in another sense
        found = replace(found, **_noted(metadata, path))
    return found


def read_tree(path: Path) -> Any:
    """Return the object in a file, as dictionaries and arrays."""
    if _is_safetensors(path):
        return _read_safetensors(path)[0]
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return read_torch_zip(path)
        if start == LEGACY_START:
            return read_torch_legacy(path)
        # Protocols 2 and later start with 0x80; the older ones have no mark but their end.
        if start.startswith(b"\x80") or last == b".":
            return read_pickle(file, source=str(path))
    what = "is empty" if not start else f"starts with {start[:12]!r}"
    raise WeightsError(
        f"{path} is not a known weights file. Supported are files of torch.save, pickles of arrays, and safetensors. "
        f"This file {what}."
    )


def read_own(path: Path) -> Weights | None:
    """Return the weights of our own folder or file, with our names and layout; None if it is from elsewhere."""
    if not path.exists():
        raise UsageError(f"File or folder of weights not found: {path}.")
    if path.is_dir():
        return _read_folder(path)
    if not _is_safetensors(path):
        return None
    arrays, metadata = _read_safetensors(path)
    if not any(name.startswith(tuple(f"{part}/" for part in PARTS)) for name in arrays):
        return None
    other = [f"{name} is {array.dtype}" for name, array in arrays.items() if array.dtype.kind != "f"]
    if other:
        raise WeightsError(f"{path} must contain only floats:\n  " + "\n  ".join(other))
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return replace(Weights("swav-tf safetensors", arrays, std=None), **_noted(metadata, path))


def metadata_of(weights: Weights) -> dict[str, str]:
    """Return what our safetensors files contain beside the tensors."""
    noted = {"step": str(weights.step)}
    if weights.std is not None:
        noted |= {MEAN_KEY: json.dumps(weights.mean), STD_KEY: json.dumps(weights.std)}
    return noted


def _noted(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what `metadata_of` wrote, as fields of Weights."""
    try:
        noted = {
            key: _three_floats(json.loads(metadata[key])) for key in (MEAN_KEY, STD_KEY) if key in metadata
        }
        return {**noted, "step": int(metadata.get("step", 0))}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} has metadata that swav-tf does not write: {error}.") from error


def _three_floats(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _read_folder(path: Path) -> Weights:
    path, std, mean = path.resolve(), None, IMAGENET_MEAN
    if (path / FACTS).is_file():
        try:
            facts = json.loads((path / FACTS).read_text())
            kind, step = str(facts["kind"]), int(facts["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}.") from error
        store = CheckpointStore(path.parent, kind=kind)
        if store.path(step) != path:
            raise UsageError(
                f"A checkpoint of step {step} must keep its name, {store.path(step).name}. Received: {path}."
            )
        if kind != "pretrain" and (path.parent.parent / NAME).is_file():
            model = ModelFacts.read(path.parent.parent / NAME)
            mean, std = model.mean, model.std
    elif (path / "config.yaml").is_file():
        recipe = load_any_recipe(path / "config.yaml")
        kind = recipe.kind
        source = recipe.augment if isinstance(recipe, Recipe) else ModelFacts.read(path / NAME)
        mean, std = source.mean, source.std
        store = CheckpointStore(path / "checkpoints", kind=kind)
        if not store.steps():
            raise UsageError(f"{path} has no checkpoint yet.")
        step = store.steps()[-1]
    else:
        raise UsageError(
            f"A folder must be a run (config.yaml and checkpoints/) or a checkpoint (state.json). Received: {path}."
        )
    checkpoint = store.read(step)
    augment = checkpoint.facts.get("recipe", {}).get("augment")  # None in a probe's or an early import
    if augment is not None and std is None:
        mean, std = _three_floats(augment["mean"]), _three_floats(augment["std"])
    arrays = {
        name: array
        for name, array in checkpoint.arrays.items()
        if name.partition("/")[0] in PARTS and array.dtype.kind == "f"  # without the seeds of dropout layers
    }
    return Weights(f"swav-tf {kind} checkpoint, step {step}", arrays, std=std, mean=mean, step=step)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the arrays of a checkpoint: the given one, or the newest of a run."""
    if path.is_dir() and not (path / ARRAYS).exists():
        store = CheckpointStore(path / "checkpoints", kind="any")
        path = store.path(store.steps()[-1])
    return file_sha256(path / ARRAYS if path.is_dir() else path)


# === safetensors ===


def _is_safetensors(path: Path) -> bool:
    """Return whether a file starts with the length of a JSON header that fits into it, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        # Not by `get_tensor`: NumPy has no bfloat16.
        arrays = {
            name: from_bytes(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}.") from error
    except KeyError as error:
        raise WeightsError(
            f"{path} has tensors of type {error}; supported are {', '.join(_DTYPES)}."
        ) from error
    return arrays, metadata


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, completely or not at all."""
    with atomic_write(path) as partial:
        try:
            save_file(dict(arrays), partial, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
