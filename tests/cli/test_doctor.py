import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cli import extras, installation
from cli.errors import run_and_report
from cli.installation import examine, find_clashes
from cli.main import swav_tf


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
    assert f"`import {name}` belongs to other-tools as well as swav-tf" in str(clash)
    assert "Install swav-tf in an environment of its own." in str(clash)


def test_other_names_are_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_clashes()
    install_fake(tmp_path, "other-tools", "evaluation")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_clashes() == before


def test_a_clash_is_a_failure_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_fake(tmp_path, "other-tools", "evaluate")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_and_report(swav_tf, ["doctor"]) == 1
    assert "Problem: `import evaluate` belongs to other-tools" in capsys.readouterr().out


def test_missing_extras_are_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "moon", ("not_a_module_at_all", "json"))
    run_and_report(swav_tf, ["doctor"])
    assert "Extra 'moon' lacks not_a_module_at_all: pip install 'swav-tf[moon]'" in capsys.readouterr().out


def test_the_report_has_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    report = examine()
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert report.cores >= 1
    assert report.memory_gib is None or report.memory_gib > 0.1
    assert report.versions["numpy"] == np.__version__
    assert report.gpus is None  # TensorFlow was not asked for
    run_and_report(swav_tf, ["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == report.as_dict()


def test_every_extra_names_modules_of_its_own() -> None:
    modules = [module for extra in extras.EXTRAS.values() for module in extra]
    assert len(modules) == len(set(modules))
    assert extras.extra_of("tensorflow.python.eager") == "train"
    assert extras.extra_of("tensorflow_datasets") == "train"
    assert extras.extra_of("tensorflowx") is None
    assert extras.extra_of(None) is None
    assert set(extras.EXTRAS) <= {"train", "onnx", "export", "tensorrt"}
    assert "swav-tf" in installation.PACKAGES
