"""Damaged and hostile files of weights: refused in words, or read whole; nothing in them is ever run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from faults.isolated import isolated
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.plumbing.errors import SwavError
from swav_tf.weights.convert import describe
from swav_tf.weights.files import open_weights
from swav_tf.weights.layout import fit
from swav_tf.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, write_torch_file

CHECKED = ("zip",)  # containers with checksums of their contents

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


@functools.cache
def originals(folder: Path) -> dict[str, bytes]:
    """The same small ResNet in every container that is read, by name of the container."""
    draw = np.random.default_rng(3)

    def kernel(*shape: int) -> np.ndarray:
        return draw.normal(0, 0.1, shape).astype(np.float32)

    state: dict[str, np.ndarray] = {"conv1.weight": kernel(8, 3, 3, 3)}
    for name, width in (("bn1", 8), ("layer1.0.bn1", 8), ("layer1.0.bn2", 8)):
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{key}"] = draw.uniform(0.5, 1.5, width).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.asarray(7, np.int64)
    for name in ("layer1.0.conv1", "layer1.0.conv2"):
        state[f"{name}.weight"] = kernel(8, 8, 3, 3)
    paddle = {
        name.replace("running_var", "_variance").replace("running_mean", "_mean"): (name, array)
        for name, array in state.items()
        if not name.endswith("tracked")
    }
    torch_file = folder / "whole.pth.tar"
    write_torch_file(state, torch_file)
    floats = {name: array for name, array in state.items() if array.dtype == np.float32}
    return {
        "zip": torch_file.read_bytes(),
        "legacy": _legacy(state),
        "pickle": pickle.dumps({"state_dict": state}, 2),
        "pdparams": pickle.dumps(paddle, 2),
        "safetensors": save(floats, {"format": "pt"}),
        "own safetensors": save(
            {f"backbone/{name.replace('.', '/')}": array for name, array in floats.items()},
            {"step": "3", "std": json.dumps([0.2, 0.2, 0.2])},
        ),
    }


def _legacy(state: dict[str, np.ndarray]) -> bytes:
    """As `torch.save` wrote before PyTorch 1.6; the pickle of a zip file names storages alike."""
    file = io.BytesIO()
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"swav-tf-faults-{os.getpid()}.pth"
    try:
        write_torch_file(state, folder)
        with zipfile.ZipFile(folder) as archive:
            described = archive.read("archive/data.pkl")
    finally:
        folder.unlink(missing_ok=True)
    # A legacy storage has a sixth item, the view that it is of: none.
    described = described.replace(b"tQ", b"NtQ")
    machine = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, machine):
        file.write(pickle.dumps(value, 2))
    file.write(described)
    keys = [str(number) for number in range(len(state))]
    file.write(pickle.dumps(keys, 2))
    for array in state.values():
        file.write(struct.pack("<Q", array.size) + array.tobytes())
    return file.getvalue()


class _Reduces:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduction = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduction


class _Name:
    """Pickles as the name of something, which need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


_PICKLER: Any = pickle._Pickler


class _Pickler(_PICKLER):  # type: ignore[misc]  # the one in Python, whose `save` can be extended
    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, _Name):
            if self.proto >= 4:
                super().save(obj.module)
                super().save(obj.name)
                self.write(pickle.STACK_GLOBAL)
            else:
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            return None
        return super().save(obj, save_persistent_id)

    def save_reduce(self, func: Any, args: Any, state: Any = None, *rest: Any, obj: Any = None) -> None:
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def hostile(draw: np.random.Generator, canary: Path) -> tuple[str, bytes]:
    """A file that calls something when it is unpickled, and what it calls."""
    module, name, arguments = CALLS[int(draw.integers(len(CALLS)))]
    place = PLACES[int(draw.integers(len(PLACES)))]
    protocol = int(draw.integers(0, pickle.HIGHEST_PROTOCOL + 1))
    container = ("pickle", "zip", "legacy")[int(draw.integers(3))]

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(canary=str(canary)) if "{canary" in value else value
        return [filled(item) for item in value] if isinstance(value, list) else value

    evil = _Reduces(_Name(module, name), tuple(filled(argument) for argument in arguments))
    order = _Name("collections", "OrderedDict")
    tree: Any = {
        "value": {"state_dict": {"conv1.weight": evil}},
        "key": [(evil, 1)],
        "argument": _Reduces(order, ([evil],)),
        "state": _Reduces(order, (), {"state": evil}),
        "deep": [[{"a": (1, [evil])}]],
        "after": [{"conv1.weight": 1.0}, evil],
        "storage": _Reduces(
            _Name("torch._utils", "_rebuild_tensor_v2"), (evil, 0, (1,), (1,), False, _Reduces(order, ()))
        ),
    }[place]
    file = io.BytesIO()
    _Pickler(file, protocol).dump(tree)
    inner = file.getvalue()
    if container == "zip":
        archived = io.BytesIO()
        with zipfile.ZipFile(archived, "w") as archive:
            archive.writestr("archive/data.pkl", inner)
            archive.writestr("archive/version", b"3\n")
        inner = archived.getvalue()
    elif container == "legacy":
        head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})]
        inner = b"".join([*head, inner, pickle.dumps([], 2)])
    return f"{container}, protocol {protocol}: {module}.{name} as {place}", inner


def run(plan: Plan) -> Iterator[Trial]:
    """Five of six are damaged, one is hostile."""
    whole = originals(plan.folder)
    canary = plan.folder / "canary"

    def made(number: int) -> tuple[str, str, bytes]:
        draw = plan.draw(number)
        if number % 6 == 5:
            return "hostile", *hostile(draw, canary)
        container = list(whole)[number % 6 if number % 6 < 5 else 0]
        if number % 12 >= 10 or draw.random() < 0.1:
            container = list(whole)[int(draw.integers(len(whole)))]
        data, how = mutated(whole[container], draw)
        return container, f"{container}: {how}", data

    def read(path: Path) -> dict[str, np.ndarray]:
        found = open_weights(path)
        describe(path)
        with contextlib.suppress(
            SwavError
        ):  # that it fits nothing is said; the tensors are read all the same
            fit(found, path, backbone_only=True)
        return found.arrays

    def outcome(number: int) -> tuple[str, str]:
        container, how, data = made(number)
        path = plan.folder / f"{number}.{'pdparams' if container == 'pdparams' else 'pth.tar'}"
        path.write_bytes(data)
        try:
            arrays = read(path)
        except SwavError as error:
            if container == "hostile" and "Nothing in it was run" not in str(error):
                wanted = how.partition(": ")[2].partition(" as ")[0].replace("__builtin__", "builtins")
                if wanted not in str(error):
                    return "", f"is refused, but not by the name of what it asks for: {error}"
            return "refused in words", ""
        finally:
            path.unlink()
        if container == "hostile":
            return "", f"is read: {list(arrays)[:3]}"
        path.write_bytes(whole[container])
        right = read(path)
        path.unlink()
        same = arrays.keys() == right.keys() and all(
            arrays[name].tobytes() == right[name].tobytes() for name in right
        )
        if same:
            return "same numbers", ""
        if container in CHECKED:
            return "", "is read to other tensors, though the file has checksums"
        if how.endswith(("cut", "cut_a_little")):
            return "", "is cut off, and read to other tensors"
        return "other numbers: the format has no checksum", ""

    for answer in isolated(outcome, list(plan.numbers)):
        container, how, _ = made(answer.argument)
        told, wrong = answer.value or ("", "")
        wrong = answer.broken or wrong
        if canary.exists():
            canary.unlink()
            wrong = "code in the file was run"
        what = "hostile pickle" if container == "hostile" else "damaged file of weights"
        yield Trial(
            answer.argument, what, told or "broken", finding=f"{how}: {shortened(wrong)}" if wrong else ""
        )
