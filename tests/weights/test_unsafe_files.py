"""Files that would run code, lie about sizes or are damaged: refused, by name, and nothing is run."""

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from swav_tf.weights.files import open_weights
from swav_tf.weights.tensors import WeightsError
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


def as_legacy(data_pkl: bytes) -> bytes:
    machine = {"little_endian": True}
    head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, machine)]
    return b"".join([*head, data_pkl, pickle.dumps([], 2)])


def refusal(tmp_path: Path, data: bytes, name: str = "weights.pth.tar") -> str:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path / name)
    return str(error.value)


HOSTILE = [
    ("posix", "system", "touch canary"),
    ("os", "system", "touch canary"),
    ("builtins", "eval", "open('canary', 'w')"),
    ("__builtin__", "exec", "open('canary', 'w')"),
    ("builtins", "getattr", "x", "upper"),
    ("subprocess", "Popen", "touch canary"),
    ("antigravity", "fly"),
    ("torch.hub", "load", "x"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("numpy.testing._private.utils", "runstring", "open('canary', 'w')", "x"),
    ("collections", "namedtuple", "x"),
    # Names with a dot would reach what lies inside an admitted one.
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.fromkeys", "x"),
]


# Bugs caught: a reader that looks names up for real, admits a whole module, or forgets one of the containers.
@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize(("module", "name", "texts"), [(m, n, t) for m, n, *t in HOSTILE])
def test_a_hostile_pickle_is_refused_by_name(container, module, name, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = call(module, name, *texts)
    data = {"pickle": inner, "zip": as_zip(inner), "legacy": as_legacy(inner)}[container]
    message = refusal(tmp_path, data)
    assert f"asks for {module.replace('__builtin__', 'builtins')}.{name}," in message
    assert "Nothing in it was run" in message
    assert not (tmp_path / "canary").exists()
    assert "antigravity" not in sys.modules


class Reduces:
    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


# Bugs caught: a call hidden in a key, a value, an argument or a state; an old or new protocol that slips through.
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["value", "argument", "state", "deep"])
def test_a_call_inside_of_something_harmless(protocol, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = Reduces(eval, ("open('canary', 'w')",))
    tree = {
        "value": {"state_dict": {"conv1.weight": evil}},
        "argument": Reduces(tuple, ([evil],)),
        "state": Reduces(dict, (), {"state": evil}),
        "deep": [[{"a": (1, [evil])}]],
    }[place]
    message = refusal(tmp_path, pickle.dumps(tree, protocol))
    assert "builtins.eval" in message or "builtins.dict" in message
    assert not (tmp_path / "canary").exists()


# Bug caught: stand-ins whose defaults or checked sizes a pickle can change afterwards.
@pytest.mark.parametrize(
    "target",
    [
        global_("torch._utils", "_rebuild_tensor_v2"),
        global_("torch", "FloatStorage"),
        global_("numpy", "dtype"),
    ],
)
def test_the_state_of_a_stand_in_cannot_be_set(target, tmp_path):
    state = b"}X\x0c\x00\x00\x00__defaults__)s"
    assert "sets the state of" in refusal(tmp_path, as_zip(b"\x80\x02" + target + state + b"b."))


# Bug caught: arrays of Python objects, which hold pickles of their own.
def test_an_array_of_objects(tmp_path):
    data = pickle.dumps({"conv1.weight": np.array([{1: 2}, None], object)}, 2)
    assert "an array of type 'O8', not of numbers" in refusal(tmp_path, data)


def tensor(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """{"conv1.weight": a tensor}, its storage named 0."""

    def numbers(values):
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    storage = (
        b"(X\x07\x00\x00\x00storage"
        + global_("torch", "FloatStorage")
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    storage += pickle.dumps(numel, 2)[2:-1] + b"tQ"
    arguments = storage + pickle.dumps(offset, 2)[2:-1] + numbers(shape) + numbers(stride) + b"\x89}"
    rebuilt = global_("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    return b"\x80\x02}X\x0c\x00\x00\x00conv1.weight" + rebuilt + b"s."


# Bugs caught: memory that is read or asked for by what a file claims, not by what it holds.
@pytest.mark.parametrize(
    ("inner", "part"),
    [
        (tensor(4, (1 << 40, 1 << 40), (0, 0)), "outside of its storage of 4 numbers"),
        (tensor(4, (4,), (2,)), "outside of its storage"),
        (tensor(4, (4,), (1,), offset=1), "outside of its storage"),
        (tensor(4, (2, 2), (1,)), "shape (2, 2) and strides (1,)"),
        (tensor(4, (-4,), (-1,)), "a size that is none"),
        (tensor(4, (4,), (1,), offset=-4), "a size that is none"),
        (tensor(5, (5,), (1,)), "storage 0 of 5 float32 is of 16 bytes"),
        (tensor(1 << 62, (4,), (1,)), "is of 16 bytes"),
        (tensor(4, (4, 2), (1, 1 << 70)), "outside of its storage"),
        (tensor(4, (1,) * 40, (1,) * 40), "no list of sizes"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "memo has an absurd index"),
        (b"\x80\x02\x8d" + b"\xff" * 7 + b"\x3fx.", "damaged or no pickle"),
        (b"\x80\x02X\x10\x00\x00\x00short", "damaged or no pickle"),
        (b"\x80\x02}(.", "damaged or no pickle"),
        (b"\x80\x02R.", "damaged or no pickle"),
        (b"", "damaged or no pickle"),
    ],
)
def test_absurd_sizes(inner, part, tmp_path):
    assert part in refusal(tmp_path, as_zip(inner, **{"0": bytes(16)}))


# Bug caught: a small file that unfolds into a large one.
def test_a_compressed_archive(tmp_path):
    data = as_zip(tensor(1 << 20, (1 << 20,), (1,)), zipfile.ZIP_DEFLATED, **{"0": bytes(1 << 22)})
    assert len(data) < 1 << 14
    assert "compressed, as `torch.save` never does" in refusal(tmp_path, data)


# Bug caught: an axis of one whose stride, which means nothing, is believed.
def test_the_stride_of_an_axis_of_one(tmp_path):
    data = as_zip(tensor(4, (1, 4), (1 << 70, 1)), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    (tmp_path / "x.pth").write_bytes(data)
    found = open_weights(tmp_path / "x.pth").tensors["conv1.weight"].read()
    np.testing.assert_array_equal(found, [[1, 2, 3, 4]])


# Bug caught: a list of storages that is believed.
@pytest.mark.parametrize("keys", [["0"], [0], "0", [["0"]]])
def test_the_list_of_storages_of_the_old_format(keys, tmp_path):
    data = as_legacy(pickle.dumps({}, 2)).removesuffix(pickle.dumps([], 2)) + pickle.dumps(keys, 2)
    assert "list of storages does not fit" in refusal(tmp_path, data)


# Bugs caught: half a download that is taken for a whole file; a reader that dies of it with a traceback.
@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_every_cut_of_a_file_is_told(name, tmp_path):
    whole = (DATA / name).read_bytes()
    for length in range(1, len(whole), 97):
        assert refusal(tmp_path, whole[:length], name)


# Bug caught: a flipped bit in the numbers that nobody notices.
def test_a_changed_byte_in_a_tensor(tmp_path):
    path = tmp_path / "x.pth"
    write_torch_file({"conv1.weight": np.arange(64, dtype=np.float32)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<ff", 30, 31))] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged: archive/data/0: Bad CRC-32"):
        open_weights(path).tensors["conv1.weight"].read()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "It is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "safetensors. It begins with b'version http'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no file of weights that is known here"),
        (pickle.dumps([1, 2]), "must hold a dictionary of tensors. It holds a list"),
        (
            pickle.dumps({"epoch": 3, "lr": 0.1}),
            "holds no tensors where they are looked for. Its keys: epoch, lr",
        ),
        (pickle.dumps({"a\x1b[31m": 1}), "Its keys: a?[31m"),
        (pickle.dumps({"layers.0.w": np.zeros(3)}), "no format that is known here. It has 1: layers.0.w"),
        (struct.pack("<Q", 2) + b"{}" + bytes(10), "no whole safetensors file"),
        (
            struct.pack("<Q", 40) + b'{"x":{"dtype":"F32","shape":[9999999]}}' + bytes(9),
            "no whole safetensors",
        ),
    ],
)
def test_other_files(data, part, tmp_path):
    assert part in refusal(tmp_path, data)


# Bug caught: any zip archive taken for PyTorch's.
def test_an_npz_file_and_torchscript(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    assert "not one that `torch.save` writes" in refusal(tmp_path, (tmp_path / "x.npz").read_bytes())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    assert "TorchScript program, which holds code" in refusal(tmp_path, file.getvalue())
