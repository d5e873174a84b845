import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cli import extras, installation
from cli.installation import examine, find_clashes
from tests.cli.command_line import ROOT, Run


def install_fake(folder: Path, distribution: str, package: str) -> None:
    """What pip leaves behind of a distribution with one package."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


@pytest.mark.parametrize("name", ["cli", "configs", "evaluate", "export", "swav_tf"])
def test_another_owner_of_our_name_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find_clashes()
    install_fake(tmp_path, "other-tools", name)
    monkeypatch.syspath_prepend(tmp_path)
    [clash] = [clash for clash in find_clashes() if clash not in before]
    assert (clash.name, clash.others) == (name, ["other-tools"])
    assert f"`import {name}` belongs to both swav-tf and other-tools" in str(clash)
    assert "Install swav-tf in a separate environment." in str(clash)


def test_other_names_are_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_clashes()
    install_fake(tmp_path, "other-tools", "evaluation")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_clashes() == before


def test_a_clash_is_a_failure_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    install_fake(tmp_path, "other-tools", "evaluate")
    monkeypatch.syspath_prepend(tmp_path)
    left = run("doctor")
    assert left.code == 1
    assert "Problem: `import evaluate` belongs to both swav-tf and other-tools" in left.out


def test_missing_extras_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(extras.EXTRAS, "moon", ("not_a_module_at_all", "json"))
    assert "Extra 'moon' lacks not_a_module_at_all: pip install 'swav-tf[moon]'" in run("doctor").out


def test_the_report_has_what_a_bug_report_needs(run: Run) -> None:
    report = examine()
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert report.cores >= 1
    assert report.memory_gib > 0.1
    assert report.versions["numpy"] == np.__version__
    assert report.gpus is None  # TensorFlow was not asked for
    assert json.loads(run("doctor", "--json").out) == report.as_dict()


def test_every_extra_names_modules_of_its_own() -> None:
    modules = [module for extra in extras.EXTRAS.values() for module in extra]
    assert len(modules) == len(set(modules))
    assert extras.extra_of("tensorflow.python.eager") == "train"
    assert extras.extra_of("tensorflow_datasets") == "train"
    assert extras.extra_of("tensorflowx") is None
    assert extras.extra_of(None) is None
    assert extras.extra_of("onnx", ["export", "runs/demo", "--output", "x"]) == "export"
    assert extras.extra_of("onnx", ["export", "x.onnx", "--to", "tensorrt"]) == "tensorrt"
    assert "swav-tf" in installation.PACKAGES


# Bug caught: a message that names an extra that there is not, which pip takes with no more than a warning.
def test_extras_that_messages_name_are_those_of_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        offered = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(extras.EXTRAS) <= set(offered)
    told = {
        extra
        for folder in ("cli", "evaluate", "export", "swav_tf")
        for path in (ROOT / folder).rglob("*.py")
        for words in re.findall(r"swav-tf\\*\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in words.split(",")
    }
    assert told <= set(offered)
    assert {"train", "onnx-gpu", "report", "tensorrt"} <= told


# Bug caught: a GPU that ONNX Runtime never uses, of which nobody is told.
@pytest.mark.parametrize(
    ("cpu", "gpu", "has_gpu", "told"),
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
def test_what_keeps_onnxruntime_from_the_gpu(
    cpu: str | None, gpu: str | None, has_gpu: bool, told: str | None
) -> None:
    remark = extras.onnxruntime_remark({"onnxruntime": cpu, "onnxruntime-gpu": gpu}, has_gpu=has_gpu)
    assert remark is None if told is None else remark is not None and remark.endswith(told)
