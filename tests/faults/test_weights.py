"""Damaged and hostile files of weights: refused with a message, or read completely; nothing in them is ever run."""

import contextlib
import io
import json
import pickle
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

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
from tests.faults.conftest import Tally
from tests.faults.harness import Worker, damage, damages, examples, randoms

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

# What hostile files call, each with arguments that would leave a canary behind.
CALLS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("os", "system", ("touch {canary}",)),
    ("posix", "system", ("touch {canary}",)),
    ("subprocess", "call", (["touch", "{canary}"],)),
    ("subprocess", "Popen", (["touch", "{canary}"],)),
    ("builtins", "eval", ("open({canary!r}, 'w')",)),
    ("builtins", "exec", ("open({canary!r}, 'w')",)),
    ("builtins", "open", ("{canary}", "w")),
    ("__builtin__", "eval", ("open({canary!r}, 'w')",)),
    ("io", "open", ("{canary}", "w")),
    ("pathlib", "Path.touch", ("{canary}",)),
    ("shutil", "copyfile", ("/etc/hostname", "{canary}")),
    ("numpy", "savetxt", ("{canary}", [1.0])),
    ("numpy.lib.npyio", "save", ("{canary}", [1.0])),
    ("runpy", "run_path", ("{canary}",)),
    ("importlib", "import_module", ("antigravity",)),
    ("torch.serialization", "load", ("{canary}",)),
    ("torch.storage", "_load_from_bytes", (b"x",)),
    ("operator", "methodcaller", ("system", "touch {canary}")),
    ("functools", "partial", (print, "x")),
    ("swav_tf.weights.files", "write_safetensors", ({}, "{canary}", {})),
    ("collections", "OrderedDict.fromkeys", ("x",)),
    ("torch._utils", "_rebuild_tensor_v2.__globals__", ("x",)),
)
PLACES = ("value", "key", "argument", "state", "deep", "after", "storage")
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
def test_damaged_weights(
    worker: Worker, tally: Tally, tmp_path: Path, container: str, how: str, random: Random
) -> None:
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


# Bug caught: code in a pickle that is run.
@given(random=randoms)
@examples(300)
def test_hostile_pickle(worker: Worker, tally: Tally, tmp_path: Path, random: Random) -> None:
    canary = tmp_path / "canary"
    wanted, data = hostile(random, canary)
    message = worker(refusal, tmp_path, data)
    assert "Nothing in it was run" in message or wanted in message
    assert not canary.exists(), "code in the file was run"
    tally("weights, hostile pickle", "refused, nothing run")


def refusal(folder: Path, data: bytes) -> str:
    try:
        arrays = read(folder, "pickle", data)
    except SwavError as error:
        return str(error)
    raise AssertionError(f"is read: {list(arrays)[:3]}")


class Reduce:
    """Pickle as a call."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduction = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduction


class Name:
    """Pickle as the name of something that need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Pickler(pickle._Pickler):  # the one in Python, whose `save` can be extended
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Name):
            super().save(obj, save_persistent_id)
        elif self.proto >= 4:
            super().save(obj.module)
            super().save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_reduce(self, func: Any, args: Any, state: Any = None, *rest: Any, obj: Any = None) -> None:
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def hostile(random: Random, canary: Path) -> tuple[str, bytes]:
    """Return a file that calls something when it is unpickled, and the name of what it calls."""
    module, name, arguments = random.choice(CALLS)

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(canary=str(canary)) if "{canary" in value else value
        return [filled(item) for item in value] if isinstance(value, list) else value

    evil = Reduce(Name(module, name), tuple(filled(argument) for argument in arguments))
    order = Name("collections", "OrderedDict")
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    tree: Any = {
        "value": {"state_dict": {"conv1.weight": evil}},
        "key": [(evil, 1)],
        "argument": Reduce(order, ([evil],)),
        "state": Reduce(order, (), {"state": evil}),
        "deep": [[{"a": (1, [evil])}]],
        "after": [{"conv1.weight": 1.0}, evil],
        "storage": Reduce(rebuild, (evil, 0, (1,), (1,), False, Reduce(order, ()))),
    }[random.choice(PLACES)]
    file = io.BytesIO()
    Pickler(file, random.randint(0, pickle.HIGHEST_PROTOCOL)).dump(tree)
    data, container = file.getvalue(), random.choice(("pickle", "zip", "legacy"))
    if container == "zip":
        archived = io.BytesIO()
        with zipfile.ZipFile(archived, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3\n")
        data = archived.getvalue()
    elif container == "legacy":
        head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})]
        data = b"".join([*head, data, pickle.dumps([], 2)])
    return f"{module}.{name}".replace("__builtin__", "builtins"), data
