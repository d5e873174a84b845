from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.errors import run_and_report
from cli.main import swav_tf


def sheet(folder: Path, *arguments: str) -> np.ndarray:
    output = folder / "new" / "sheet.png"
    assert run_and_report(swav_tf, ["crops", "-c", "demo", "--output", str(output), *arguments]) == 0
    return np.asarray(Image.open(output))


def test_a_contact_sheet_of_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three, six = sheet(tmp_path, "--rows", "3"), sheet(tmp_path)
    assert six.shape[0] > three.shape[0]
    assert six.std() > 10  # something is on it
    assert capsys.readouterr().out.endswith("new/sheet.png: 6 images with 6 crops each\n")


def test_epoch_and_seed_change_the_crops_and_nothing_else_does(tmp_path: Path) -> None:
    first = sheet(tmp_path)
    np.testing.assert_array_equal(first, sheet(tmp_path))
    assert (first != sheet(tmp_path, "--epoch", "1")).any()
    assert (first != sheet(tmp_path, "-o", "train.seed=32")).any()


def test_a_folder_given_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for index in range(4):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg")
    arguments = ["crops", str(tmp_path), "-c", "one_gpu", "-o", "data.kind=images", "--rows", "2"]
    assert run_and_report(swav_tf, [*arguments, "--output", str(tmp_path / "sheet.png")]) == 0
    assert "2 images with 8 crops each" in capsys.readouterr().out


def test_missing_images_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_report(swav_tf, ["crops", "nowhere", "-c", "one_gpu"]) == 1
    assert "nowhere" in capsys.readouterr().err
