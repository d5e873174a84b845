from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command_line import Run, Told
from tests.cli.images import write_noise

Sheet = Callable[..., np.ndarray]


@pytest.fixture
def sheet(told: Told, tmp_path: Path) -> Sheet:
    """Draws the crops of the demo."""

    def sheet(*arguments: str) -> np.ndarray:
        output = tmp_path / "new" / "sheet.png"
        printed = told("crops", "-c", "demo", "--output", output, *arguments)
        assert "new/sheet.png: " in printed
        return np.asarray(Image.open(output))

    return sheet


def test_a_contact_sheet_of_the_digits(sheet: Sheet) -> None:
    three, six = sheet("--rows", "3"), sheet()
    assert six.shape[0] > three.shape[0]
    assert six.std() > 10  # something is on it


def test_epoch_and_seed_change_the_crops_and_nothing_else_does(sheet: Sheet) -> None:
    first = sheet()
    np.testing.assert_array_equal(first, sheet())
    assert (first != sheet("--epoch", "1")).any()
    assert (first != sheet("-o", "train.seed=32")).any()


def test_a_folder_given_as_data(tmp_path: Path, told: Told) -> None:
    write_noise(tmp_path, [f"{number}.jpg" for number in range(4)], height=60, width=80)
    arguments = ["crops", tmp_path, "-c", "one_gpu", "-o", "data.kind=images", "--rows", "2"]
    assert "2 images with 8 crops each" in told(*arguments, "--output", tmp_path / "sheet.png")


def test_missing_images_are_told(run: Run) -> None:
    left = run("crops", "nowhere", "-c", "one_gpu")
    assert left.code == 1
    assert "nowhere" in left.err
