"""Both formats of `torch.save`, read and written without PyTorch.

data/torch_zip.pth and data/torch_legacy.pth were written by PyTorch 2.13 from the same tree.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from swav_tf.weights.files import read_tree
from swav_tf.weights.torch_files import write_torch_file

DATA = Path(__file__).parent / "data"
BASE = np.arange(24, dtype=np.float32)


# Bugs caught: strides or offsets ignored (a transposed or sliced tensor), a type read as another, bfloat16
# taken for float16, storages of the old format taken in another order.
@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_pytorch_wrote(name):
    tree = read_tree(DATA / name)
    found = {key: view.array for key, view in tree["state_dict"].items()}
    expected = {
        "whole": BASE.reshape(4, 6),
        "part": BASE[6:18].reshape(3, 4),
        "turned": BASE.reshape(4, 6).T,
        "spread": BASE[::5],
        "parameter": np.array([1.5, -2], np.float32),
        "half": np.array([0.1, 65504], np.float16),
        "bfloat16": np.array([0.10009765625, 3.00405527e38], np.float32),
        "double": np.array([0.1]),
        "long": np.array(-5),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].shape == array.shape
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    assert tree["epoch"] == 3
    assert tree["names"] == ["a", ("b", None, True)]
    np.testing.assert_array_equal(tree["model"]["weight"].array, np.arange(6).reshape(2, 3))


def tensors():
    return {
        "module.conv1.weight": np.random.default_rng(0).normal(size=(4, 3, 7, 7)).astype(np.float32),
        "turned": BASE.reshape(4, 6).T,
        "ü": np.float32(3).reshape(()),
        "count": np.asarray(1 << 40, np.int64),
        "empty": np.zeros((0, 2), np.float32),
    }


# Bugs caught: numbers saved in the order of a transposed view; a scalar that comes back as a vector.
def test_what_we_write_we_read(tmp_path):
    write_torch_file(tensors(), tmp_path / "x.pth")
    found = read_tree(tmp_path / "x.pth")
    assert list(found) == list(tensors())
    for name, array in tensors().items():
        assert found[name].array.shape == array.shape
        assert found[name].array.dtype == array.dtype
        np.testing.assert_array_equal(found[name].array, array)


# Bugs caught: equal weights that make unequal files; data that cannot be mapped into memory.
def test_files_are_repeatable_and_aligned(tmp_path):
    for name in ("a.pth", "b.pth"):
        write_torch_file(tensors(), tmp_path / name)
    data = (tmp_path / "a.pth").read_bytes()
    assert data == (tmp_path / "b.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name, extra = np.frombuffer(data, "<u2", 2, info.header_offset + 26)
            assert (info.header_offset + 30 + int(name) + int(extra)) % 64 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]  # no half-written file


# PyTorch's own word, where it is installed: it reads our files in its safe mode, and mapped into memory.
@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_reads_what_we_write(mmap, tmp_path):
    torch = pytest.importorskip("torch")
    write_torch_file(tensors(), tmp_path / "x.pth")
    found = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)
    assert type(found).__name__ == "OrderedDict"
    for name, array in tensors().items():
        assert str(found[name].dtype) == f"torch.{array.dtype.name}"
        np.testing.assert_array_equal(found[name].numpy(), array)
