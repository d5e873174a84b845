"""What is written of versions, and that nothing fails where the package is not installed."""

from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cli.main import swav_tf
from export.run import _metadata
from export.settings import ExportSettings
from swav_tf.data.folders import ClassFolders
from swav_tf.data.sharding import write_shards
from swav_tf.plumbing.system import version_of
from tests.swav_models import tiny_recipe


@pytest.fixture
def not_installed(monkeypatch):
    """A source tree on the path, its package not installed; ONNX Runtime under its other name."""
    others = metadata.version

    def version(package):
        if package in ("swav-tf", "onnxruntime"):
            raise metadata.PackageNotFoundError(package)
        return "1.2.3" if package == "onnxruntime-gpu" else others(package)

    monkeypatch.setattr(metadata, "version", version)


def test_the_first_that_is_installed(not_installed):
    assert version_of("numpy") == np.__version__
    assert version_of("swav-tf", "numpy") == np.__version__
    assert version_of("swav-tf") == "unknown"


# Bugs caught: PackageNotFoundError at the end of an export, of a packing, and of an export by onnxruntime-gpu.
def test_a_source_tree_will_do(not_installed, tmp_path):
    recipe = tiny_recipe()
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a" / "1.png")
    write_shards(ClassFolders(tmp_path / "images"), tmp_path / "shards", shards=1)
    assert any(b"swav-tf unknown" in file.read_bytes() for file in (tmp_path / "shards").glob("*.json"))

    model = SimpleNamespace(mean=np.float32([0.5] * 3), std=np.float32([0.2] * 3))
    trained = SimpleNamespace(
        recipe=recipe, model=model, step=3, epoch="1", weights_sha256="0" * 64, class_names=()
    )
    versions = _metadata(trained, ExportSettings(), (), recipe.data.evaluation).versions
    assert versions["swav-tf"] == "unknown"
    assert versions["onnxruntime"] == "1.2.3"


# Bug caught: click's own --version, a RuntimeError there.
def test_the_command_line_tells_it(not_installed, capsys):
    with pytest.raises(SystemExit):
        swav_tf(["--version"], prog_name="swav-tf")
    assert capsys.readouterr().out == "swav-tf, version unknown\n"
