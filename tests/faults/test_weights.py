"""Damaged files of weights: refused with a message, or read completely. `tests/weights` has hostile ones."""

import contextlib
import io
import json
import pickle
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from swav_tf.plumbing.errors import SwavError
from swav_tf.weights.convert import describe
from swav_tf.weights.files import open_weights
from swav_tf.weights.layout import fit
from swav_tf.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, write_torch_file
from tests.faults.harness import damage, damages, examples, randoms

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(1800)]

CONTAINERS = ("zip", "legacy", "pickle", "pdparams", "safetensors", "own safetensors")


@cache
def originals() -> dict[str, bytes]:
    """Return the same small ResNet in every container that is read."""
    draw = np.random.default_rng(3)
    state: dict[str, np.ndarray] = {"conv1.weight": draw.normal(0, 0.1, (8, 3, 3, 3)).astype(np.float32)}
    for name in ("bn1", "layer1.0.bn1", "layer1.0.bn2"):
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{key}"] = draw.uniform(0.5, 1.5, 8).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.asarray(7, np.int64)
    for name in ("layer1.0.conv1", "layer1.0.conv2"):
        state[f"{name}.weight"] = draw.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)
    floats = {name: array for name, array in state.items() if array.dtype == np.float32}
    paddle = {
        name.replace("running_var", "_variance").replace("running_mean", "_mean"): (name, array)
        for name, array in floats.items()
    }
    own = {f"backbone/{name.replace('.', '/')}": array for name, array in floats.items()}
    with tempfile.TemporaryDirectory() as folder:
        torch_file = Path(folder, "x.pth.tar")
        write_torch_file(state, torch_file)
        archive = torch_file.read_bytes()
    return {
        "zip": archive,
        "legacy": legacy(archive, state),
        "pickle": pickle.dumps({"state_dict": state}, 2),
        "pdparams": pickle.dumps(paddle, 2),
        "safetensors": save(floats, {"format": "pt"}),
        "own safetensors": save(own, {"step": "3", "std": json.dumps([0.2, 0.2, 0.2])}),
    }


def legacy(archive: bytes, state: dict[str, np.ndarray]) -> bytes:
    """Return what `torch.save` wrote before PyTorch 1.6; the pickle of a zip file names storages in the same way."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        tree = file.read("archive/data.pkl").replace(b"tQ", b"NtQ")  # the sixth item of a storage: no view
    machine = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, machine)]
    keys = pickle.dumps([str(number) for number in range(len(state))], 2)
    arrays = [struct.pack("<Q", array.size) + array.tobytes() for array in state.values()]
    return b"".join([*head, tree, keys, *arrays])


@given(container=st.sampled_from(CONTAINERS), how=damages, random=randoms)
@examples(900)
def test_damaged_weights(worker, tally, tmp_path, container, how, random):
    data = damage(originals()[container], how, random)
    tally("weights, damaged", worker(outcome, tmp_path, container, how, data))


def outcome(folder: Path, container: str, how: str, data: bytes) -> str:
    try:
        arrays = read(folder, container, data)
    except SwavError:
        return "refused"
    right = read(folder, container, originals()[container])
    if {name: array.tobytes() for name, array in arrays.items()} == {
        n: a.tobytes() for n, a in right.items()
    }:
        return "the same numbers"
    assert container != "zip", "read to other tensors, though the file has checksums"
    assert not how.startswith("cut off"), "a truncated file is read to other tensors"
    return "other numbers: the format has no checksum"


def read(folder: Path, container: str, data: bytes) -> dict[str, np.ndarray]:
    path = folder / ("x.pdparams" if container == "pdparams" else "x.pth.tar")
    path.write_bytes(data)
    found = open_weights(path)
    describe(path)
    with contextlib.suppress(SwavError):  # it may fit no network; the tensors are read all the same
        fit(found, path, backbone_only=True)
    return found.arrays
