"""What comes after pretraining: features, k-NN, clusters, similar images, maps."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import progress
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.feature_file import read_feature_file
from swav_tf.data.digits import Digits
from tests.cli.command_line import TENSORFLOW, Run, Told, run_without
from tests.cli.images import write_noise
from tests.tiny_run import tiny_run


@pytest.fixture(scope="session")
def model() -> str:
    return str(tiny_run())


@pytest.fixture(scope="session")
def files(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.npy, test.npz and an image of the test digits, digit.png."""
    folder = tmp_path_factory.mktemp("features")
    for split, name in (("train", "train.npy"), ("test", "test.npz")):
        arguments = ["features", "digits", "--split", split, "--model", model, "--output", str(folder / name)]
        assert run_and_report(swav_tf, [*arguments, "--quiet"]) == 0
    Image.fromarray(Digits("test").read(17)).save(folder / "digit.png")
    return folder


# Bugs caught: options that do not reach the extraction, JSON among other lines.
def test_features(model: str, tmp_path: Path, told: Told) -> None:
    output = str(tmp_path / "new" / "x.parquet")
    arguments = ["features", "digits", "--split", "test", "--model", model, "--output", output]
    result = json.loads(told(*arguments, "--batch", "64", "--threads", "2", "--json"))
    assert (result["output"], result["images"], result["unreadable"]) == (output, 360, 0)
    assert result["images_per_second"] > 0
    assert len(read_feature_file(output).names) == 360
    again = told(*arguments)
    assert (
        f"{output}: 360 images x {result['feature_dim']} features\n360 of the images had been computed before"
        in again
    )


# Bugs caught: train and test swapped, another k or temperature than was asked for.
def test_knn(files: Path, told: Told) -> None:
    train, test = str(files / "train.npy"), str(files / "test.npz")
    result = json.loads(told("knn", train, test, "-k", "50,5", "--temperature", "0.5", "--json"))
    assert (result["train_images"], result["test_images"], result["temperature"]) == (1437, 360, 0.5)
    assert list(result["knn"]) == ["5", "50"]
    assert 0.4 < result["knn"]["5"]["top1"] <= result["knn"]["5"]["top5"] <= 1
    table = told("knn", train, test)
    assert "360 images, with 1,437 reference images" in table
    assert [line.split()[1] for line in table.splitlines() if "%" in line] == ["10", "20", "100", "200"]


# Bug caught: one of the files of a folder of clusters that is missing.
def test_clusters(model: str, tmp_path: Path, told: Told) -> None:
    arguments = ["clusters", "digits", "--split", "test", "--model", model, "--output", str(tmp_path / "c")]
    printed = told(*arguments, "--prototypes", "3", "--nearest", "4")
    assert "of 12 prototypes used" in printed
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"index.html", "sheet.png", "clusters.json", "usage.csv", "assignments.csv"}
    whole = json.loads((tmp_path / "c" / "clusters.json").read_text())
    assert sum(row["images"] for row in whole["usage"]) == whole["images"] == 360
    assert len(whole["usage"]) == 12
    assert json.loads(told(*arguments, "--json"))["usage"] == whole["usage"]


# Bug caught: neighbours that are not those of the image.
def test_similar(model: str, files: Path, tmp_path: Path, told: Told) -> None:
    arguments = ["similar", str(files / "digit.png"), "--features", str(files / "test.npz"), "--model", model]
    arguments += ["--output", str(tmp_path / "x.png"), "-k", "3"]
    near = json.loads(told(*arguments, "--json"))["similar"]
    assert near[0]["index"] == 17
    assert near[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(near) == 3
    assert near[0]["name"] in told(*arguments)
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 20


# Bug caught: --method or --limit that does not arrive.
def test_plot(files: Path, tmp_path: Path, told: Told) -> None:
    output = str(tmp_path / "x.png")
    arguments = ["plot", str(files / "test.npz"), "--output", output, "--limit", "50"]
    assert told(*arguments) == f"{output}: 50 of 360 images\n"
    first = Path(output).read_bytes()
    told(*arguments, "--method", "tsne")
    assert Path(output).read_bytes() != first


# Bug caught: images of a folder decoded, labelled or left out otherwise than is said.
def test_a_folder_with_an_unreadable_image(model: str, tmp_path: Path, run: Run, told: Told) -> None:
    names = [f"{'ab'[number % 2]}/{number}.jpg" for number in range(12)]
    images = write_noise(tmp_path / "images", names, height=40, width=50)
    (images / "a" / "0.jpg").write_bytes(b"no image")
    arguments = ["features", images, "--model", model, "--output", tmp_path / "x.npz"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "--kind class_folders" in err
    arguments += ["--kind", "class_folders", "--quiet"]
    code, _, err = run(*arguments, "--max-bad-share", "0")
    assert code == 1
    assert "unreadable, 0 of 12" in err
    assert "1 unreadable images are left out" in told(*arguments)
    with np.load(tmp_path / "x.npz") as file:
        assert file["features"].shape[0] == 11
        assert sorted(file["labels"].tolist()) == [0] * 5 + [1] * 6


# Bugs caught: a traceback, or the wrong exit code, where what is asked for cannot be done.
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (
            ["features", "digits", "--model", "nowhere", "--output", "x.npz"],
            2,
            "nowhere, which does not exist",
        ),
        (["features", "digits", "--model", "FILES", "--output", "x.npz"], 2, "a folder without config.yaml"),
        (["features", "digits", "--model", "model.onnx", "--output", "x.npz"], 2, "which does not exist"),
        (
            ["features", "digits", "--model", "MODEL", "--output", "x.csv"],
            2,
            "must end in .npz, .npy or .parquet",
        ),
        (["features", "digits", "--model", "MODEL"], 2, "Missing option '--output'"),
        (
            ["features", "FILES", "--kind", "folder", "--model", "MODEL", "--output", "x.npz"],
            2,
            "is not one of",
        ),
        (["features", "EMPTY", "--kind", "images", "--model", "MODEL", "--output", "x.npz"], 1, "is empty"),
        (
            ["features", "gone", "--kind", "images", "--model", "MODEL", "--output", "x.npz"],
            1,
            "gone. Check the path",
        ),
        (
            ["features", "digits", "--model", "MODEL", "--output", "FILES/train.npy", "--split", "test"],
            2,
            "exists and was made with other settings",
        ),
        (["knn", "gone.npz", "FILES/test.npz"], 2, "Feature file not found"),
        (["knn", "FILES/digit.png", "FILES/test.npz"], 2, "must end in"),
        (["knn", "FILES/train.npy", "FILES/other.npz"], 2, "of the same width"),
        (["knn", "FILES/train.npy", "FILES/unlabelled.npz"], 1, "needs labels"),
        (["knn", "FILES/train.npy", "FILES/text.npz"], 1, "It cannot be read"),
        (["knn", "FILES/train.npy", "FILES/test.npz", "-k", "2000"], 2, "Received: 2000"),
        (["knn", "FILES/train.npy", "FILES/test.npz", "-k", "0"], 2, "whole numbers >= 1"),
        (["knn", "FILES/train.npy", "FILES/test.npz", "-k", "5;6"], 2, "whole numbers >= 1"),
        (["knn", "FILES/test.npz", "FILES/test.npz"], 2, "must be different ones"),
        (["knn", "FILES/train.npy", "FILES/test.npz", "--temperature", "0"], 2, "'--temperature'"),
        (["clusters", "digits", "--model", "FILES", "--output", "c"], 2, "a folder without config.yaml"),
        (
            ["clusters", "digits", "--model", "MODEL", "--output", "FILES/test.npz"],
            2,
            "--output must be a folder",
        ),
        (["similar", "gone.png", "--features", "FILES/test.npz", "--model", "MODEL"], 2, "No such file"),
        (
            ["similar", "FILES/test.npz", "--features", "FILES/test.npz", "--model", "MODEL"],
            1,
            "must be an image",
        ),
        (
            ["similar", "FILES/digit.png", "--features", "FILES/other.npz", "--model", "MODEL"],
            2,
            "must be of the same model",
        ),
        (
            [
                "similar",
                "FILES/digit.png",
                "--features",
                "FILES/test.npz",
                "--model",
                "MODEL",
                "--output",
                "x",
            ],
            2,
            "A picture must",
        ),
        (["plot", "FILES/test.npz", "--output", "x.txt"], 2, "A picture must end in"),
        (["plot", "gone.npz"], 2, "Feature file not found"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str],
    code: int,
    part: str,
    model: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    np.savez(files / "other.npz", features=np.ones((9, 3), np.float32), labels=np.zeros(9, np.int64))
    with np.load(files / "test.npz") as file:
        np.savez(files / "unlabelled.npz", features=file["features"])
    (files / "text.npz").write_text("text")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": model, "FILES": str(files), "EMPTY": "empty"}
    for name, place in places.items():
        arguments = [word.replace(name, place) for word in arguments]
    left = run(*arguments)
    assert (left.code, left.out) == (code, "")
    assert part in left.err
    assert "This is a bug" not in left.err
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


# Bug caught: hours of work before it is told that the output cannot be written.
def test_parquet_needs_its_package(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    left = run("features", "digits", "--model", "nowhere", "--output", "x.parquet")
    assert left.code == 1
    assert "pip install 'swav-tf[train]'" in left.err


# Bug caught: a speed that counts the images of an earlier call, or a log without a sign of life.
def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.image_progress(1000, "features", quiet=False) as done:
        done(400)
        done(700)
    assert capsys.readouterr().err == "features 700/1,000  100 images/s  0:00:03 left\n"


# Bug caught: a command on feature files that loads TensorFlow, which a server does not have.
def test_feature_files_need_no_tensorflow(files: Path, tmp_path: Path) -> None:
    for arguments in (
        ["knn", files / "train.npy", files / "test.npz", "--json"],
        ["plot", files / "test.npz", "--output", tmp_path / "x.png"],
    ):
        left = run_without(TENSORFLOW, *arguments)
        assert left.code == 0, left.err
