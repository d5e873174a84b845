"""`doctor`, and the extras that messages recommend."""

import json
import re
import sys
import tomllib

import numpy as np
import pytest

from cli.commands.doctor import PACKAGES, examine, find_clashes, onnxruntime_remark
from cli.errors import EXTRAS, extra_of
from tests.cli.command_line import ROOT


def test_clashes(tmp_path, monkeypatch, run):
    before = find_clashes()
    names = ["cli", "configs", "evaluate", "export", "swav_tf"]
    packages = [*names, "evaluation"]  # the last is not an import name of swav-tf
    info = tmp_path / "other_tools-1.0.dist-info"
    for folder in (info, *(tmp_path / package for package in packages)):
        folder.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tools\nVersion: 1.0\n")
    files = [f"{package}/__init__.py" for package in packages]
    for file in files:
        (tmp_path / file).touch()
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.syspath_prepend(tmp_path)

    new = [clash for clash in find_clashes() if clash not in before]
    assert [(clash["name"], clash["others"]) for clash in new] == [(name, ["other-tools"]) for name in names]
    result = run("doctor")
    assert result.code == 1
    for name in names:
        assert f"Problem: `import {name}` belongs to both swav-tf and other-tools" in result.out
    assert "Install swav-tf in a separate environment." in result.out


def test_findings(run, monkeypatch):
    report = examine()
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cores"] >= 1
    assert report["memory_gib"] > 0.1
    assert report["versions"]["numpy"] == np.__version__
    assert report["gpus"] is None  # without --gpu
    assert json.loads(run("doctor --json").out) == report
    monkeypatch.setitem(EXTRAS, "moon", ("not_a_module_at_all", "json"))
    assert "Extra 'moon' lacks not_a_module_at_all: pip install 'swav-tf[moon]'" in run("doctor").out
    assert "GPUs  " in run("doctor --gpu").out


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("tensorflow.python.eager", [], "train"),
        ("tensorflow_datasets", [], "train"),
        ("tensorflowx", [], None),
        (None, [], None),
        ("onnx", ["export", "runs/demo", "--output", "x"], "export"),
        ("onnx", ["export", "x.onnx", "--to", "tensorrt"], "tensorrt"),
        ("onnx", ["export", "x.onnx", "--output", "x"], "export"),
        ("sklearn.decomposition", ["plot", "x.npz"], "report"),
    ],
)
def test_extra_of(module, arguments, extra):
    assert extra_of(module, arguments) == extra


# Bug caught: a message that names an extra which does not exist; pip only warns about it.
def test_messages_name_extras_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        offered = tomllib.load(file)["project"]["optional-dependencies"]
    named = {
        extra
        for folder in ("cli", "evaluate", "export", "swav_tf")
        for path in (ROOT / folder).rglob("*.py")
        for words in re.findall(r"swav-tf\\*\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in words.split(",")
    }
    assert {"train", "onnx-gpu", "report", "tensorrt"} <= named <= set(offered)
    assert set(EXTRAS) <= set(offered)
    modules = [module for extra in EXTRAS.values() for module in extra]
    assert len(modules) == len(set(modules))
    assert "swav-tf" in PACKAGES


# Bug caught: a GPU that ONNX Runtime never uses, without a message.
@pytest.mark.parametrize(
    ("cpu", "gpu", "has_gpu", "end"),
    [
        (None, None, False, None),
        ("1.26", None, False, None),
        (None, "1.26", True, None),
        (None, None, True, "GPU: pip install 'swav-tf[onnx-gpu]'"),
        ("1.26", None, True, "GPU: pip uninstall onnxruntime, then pip install 'swav-tf[onnx-gpu]'"),
        ("1.26", "1.26", True, "onnxruntime onnxruntime-gpu, then pip install 'swav-tf[onnx-gpu]'"),
        ("1.26", "1.26", False, "onnxruntime onnxruntime-gpu, then pip install 'swav-tf[onnx]'"),
    ],
)
def test_onnxruntime_and_the_gpu(cpu, gpu, has_gpu, end):
    remark = onnxruntime_remark({"onnxruntime": cpu, "onnxruntime-gpu": gpu}, has_gpu=has_gpu)
    assert remark is None if end is None else remark.endswith(end)
