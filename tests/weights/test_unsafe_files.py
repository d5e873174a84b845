"""Files that would run code, claim wrong sizes or are damaged: refused with the reason, and nothing is run."""

import io
import pickle
import struct
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from swav_tf.weights.files import open_weights, read_tree
from swav_tf.weights.safe_pickle import WeightsError
from swav_tf.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, write_torch_file

DATA = Path(__file__).parent / "data"


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *texts: str) -> bytes:
    """A pickle that calls a function with texts, as a hostile `__reduce__` does."""
    arguments = b"".join(b"X" + struct.pack("<I", len(text)) + text.encode() for text in texts)
    return b"\x80\x02" + global_(module, name) + b"(" + arguments + b"tR."


def as_zip(data_pkl: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return file.getvalue()


def as_legacy(data_pkl: bytes, keys: object = ()) -> bytes:
    head = (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})
    keys = list(keys) if isinstance(keys, tuple) else keys
    return b"".join([*(pickle.dumps(value, 2) for value in head), data_pkl, pickle.dumps(keys, 2)])


def refusal(tmp_path: Path, data: bytes, name: str = "weights.pth.tar") -> str:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path / name)
    return str(error.value)


HOSTILE = [
    ("posix", "system", "touch canary"),
    ("builtins", "eval", "open('canary', 'w')"),
    ("__builtin__", "exec", "open('canary', 'w')"),
    ("builtins", "getattr", "x", "upper"),
    ("subprocess", "Popen", "touch canary"),
    ("antigravity", "fly"),
    ("torch.hub", "load", "x"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("numpy.testing._private.utils", "runstring", "open('canary', 'w')", "x"),
    ("collections", "namedtuple", "x"),
    # Names with a dot would reach into an allowed one.
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.fromkeys", "x"),
]


# Bugs caught: a reader that looks names up for real, allows a complete module, or forgets one of the containers.
@pytest.mark.parametrize("wrap", [bytes, as_zip, as_legacy])
def test_a_hostile_pickle_is_refused_by_name(wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module, name, *texts in HOSTILE:
        message = refusal(tmp_path, wrap(call(module, name, *texts)))
        assert f"refers to {module.replace('__builtin__', 'builtins')}.{name}," in message
        assert "No code was run" in message
    assert not (tmp_path / "canary").exists()
    assert "antigravity" not in sys.modules


class Reduces:
    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


# Bugs caught: a call hidden in a key, a value, an argument or a state; an old or new protocol that slips through.
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_inside_of_something_harmless(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = Reduces(eval, ("open('canary', 'w')",))
    for tree in (
        {"state_dict": {"conv1.weight": evil}},
        Reduces(tuple, ([evil],)),
        Reduces(dict, (), {"state": evil}),
        [[{"a": (1, [evil])}]],
    ):
        message = refusal(tmp_path, pickle.dumps(tree, protocol))
        assert "builtins.eval" in message or "builtins.dict" in message
    assert not (tmp_path / "canary").exists()


def tensor(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """{"conv1.weight": a tensor}, its storage named 0."""

    def value(item: object) -> bytes:
        return pickle.dumps(item, 2)[2:-1]

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(value, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storage" + global_("torch", "FloatStorage")
    storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + value(numel) + b"tQ"
    arguments = storage + value(offset) + numbers(shape) + numbers(stride) + b"\x89}"
    rebuilt = global_("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    return b"\x80\x02}X\x0c\x00\x00\x00conv1.weight" + rebuilt + b"s."


# Bug caught: stand-ins whose defaults or checked arrays a pickle can change afterwards.
@pytest.mark.parametrize(
    ("target", "part"),
    [
        (global_("torch._utils", "_rebuild_tensor_v2"), "sets the state of a function"),
        (global_("numpy", "dtype"), "sets the state of a function"),
        (global_("torch", "FloatStorage"), "damaged or not a pickle"),
        (global_("argparse", "Namespace"), "damaged or not a pickle"),
        (tensor(4, (4,), (1,))[:-2][18:], "damaged or not a pickle"),
    ],
)
def test_the_state_of_a_stand_in_cannot_be_set(target, part, tmp_path):
    state = b"}X\x0c\x00\x00\x00__defaults__)s"
    assert part in refusal(tmp_path, as_zip(b"\x80\x02" + target + state + b"b.", **{"0": bytes(16)}))


# Bugs caught: a training checkpoint of DINO refused for its settings; settings that are kept, or that hide a call.
def test_settings_of_argparse_are_dropped(tmp_path):
    tree = {"teacher": {"backbone.layer1.0.conv1.weight": np.ones(3)}, "args": Namespace(arch="resnet50")}
    (tmp_path / "x.pth").write_bytes(as_zip(pickle.dumps(tree, 2)))
    assert open_weights(tmp_path / "x.pth").arrays.keys() == {"layer1.0.conv1.weight"}
    assert not hasattr(read_tree(tmp_path / "x.pth")["args"], "arch")
    tree["args"].arch = Reduces(eval, ("1",))
    assert "refers to builtins.eval," in refusal(tmp_path, as_zip(pickle.dumps(tree, 2)))


# Bugs caught: memory that is read or allocated by what a file claims, not by what it contains.
@pytest.mark.parametrize(
    ("inner", "part"),
    [
        (tensor(4, (1 << 40, 1 << 40), (0, 0)), "outside of its storage of 4 numbers"),
        (tensor(4, (4,), (2,)), "outside of its storage"),
        (tensor(4, (4,), (1,), offset=1), "outside of its storage"),
        (tensor(4, (2, 2), (1,)), "shape (2, 2) and strides (1,)"),
        (tensor(4, (-4,), (-1,)), "an invalid size"),
        (tensor(4, (4,), (1,), offset=-4), "an invalid size"),
        (tensor(5, (5,), (1,)), "storage 0 of 5 float32 is of 16 bytes"),
        (tensor(1 << 62, (4,), (1,)), "is of 16 bytes"),
        (tensor(4, (4, 2), (1, 1 << 70)), "outside of its storage"),
        (tensor(4, (1,) * 40, (1,) * 40), "not a list of sizes"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "memo has an invalid index"),
        (b"\x80\x02\x8d" + b"\xff" * 7 + b"\x3fx.", "damaged or not a pickle"),
        (b"\x80\x02X\x10\x00\x00\x00short", "damaged or not a pickle"),
        (b"\x80\x02}(.", "damaged or not a pickle"),
        (b"\x80\x02R.", "damaged or not a pickle"),
        (b"", "damaged or not a pickle"),
    ],
)
def test_absurd_sizes(inner, part, tmp_path):
    assert part in refusal(tmp_path, as_zip(inner, **{"0": bytes(16)}))


# Bugs caught: a small file that unpacks into a large one; storages of the old format beyond its end.
def test_more_than_a_file_has(tmp_path):
    inner = tensor(1 << 20, (1 << 20,), (1,))
    data = as_zip(inner, zipfile.ZIP_DEFLATED, **{"0": bytes(1 << 22)})
    assert "compressed members, which `torch.save` never writes" in refusal(tmp_path, data)
    assert "storage 0 is incomplete" in refusal(tmp_path, as_legacy(inner, ("0",)))


# Bug caught: a stride of an axis of one, which is arbitrary, that is used.
def test_the_stride_of_an_axis_of_one(tmp_path):
    data = as_zip(tensor(4, (1, 4), (1 << 70, 1)), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    (tmp_path / "x.pth").write_bytes(data)
    np.testing.assert_array_equal(open_weights(tmp_path / "x.pth").arrays["conv1.weight"], [[1, 2, 3, 4]])


@pytest.mark.parametrize("keys", [["0"], [0], "0", [["0"]]])
def test_the_list_of_storages_of_the_old_format(keys, tmp_path):
    assert "list of storages does not fit" in refusal(tmp_path, as_legacy(pickle.dumps({}, 2), keys))


# Bugs caught: half a download that is taken for a complete file; a reader that fails on it with a traceback.
@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_every_cut_of_a_file_is_refused(name, tmp_path):
    data = (DATA / name).read_bytes()
    for length in range(1, len(data), 97):
        assert refusal(tmp_path, data[:length], name)


# Bug caught: a flipped bit in the numbers that is not noticed.
def test_a_changed_byte_in_a_tensor(tmp_path):
    path = tmp_path / "x.pth"
    write_torch_file({"conv1.weight": np.arange(64, dtype=np.float32)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<ff", 30, 31))] ^= 1
    assert "Bad CRC-32 for file 'archive/data/0'" in refusal(tmp_path, bytes(data))


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


HEADER = b'{"x":{"dtype":"F32","shape":[9999999]}}'


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "This file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "safetensors. This file starts with b'version http'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a known weights file"),
        (pickle.dumps([1, 2]), "must contain a dictionary of tensors. It contains a list"),
        (pickle.dumps({"epoch": 3, "lr": 0.1}), "has no tensors, nor dictionaries with some. Its keys: epoch, lr"),
        (pickle.dumps({"a\x1b[31m": 1}), "Its keys: a?[31m"),
        (pickle.dumps({"layers.0.w": np.zeros(3)}), "an unknown format. It has 1: layers.0.w"),
        (pickle.dumps({"conv1.weight": np.array([{1: 2}, None], object)}, 2), "an array of type 'O8', not of numbers"),
        (struct.pack("<Q", 2) + b"{}" + bytes(10), "not a complete safetensors file"),
        (struct.pack("<Q", 40) + HEADER + bytes(9), "not a complete safetensors file"),
        (npz(), "not one that `torch.save` writes"),
    ],
)  # fmt: skip
def test_other_files(data, part, tmp_path):
    assert part in refusal(tmp_path, data)


def test_torchscript(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    assert "TorchScript program, which holds code" in refusal(tmp_path, (tmp_path / "x.pt").read_bytes())
