"""`swav-tf data`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command_line import Left, Run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images of two classes; one is a copy of another, one is no image."""
    root = tmp_path / "images"
    for number in range(6):
        path = root / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + 2 * number, 30, 3), 40 * number, np.uint8)).save(path)
    (root / "dog" / "copy.png").write_bytes((root / "dog" / "1.png").read_bytes())
    (root / "dog" / "no image.jpg").write_bytes(b"\xff\xd8 this is none")
    return root


@pytest.fixture
def data(run: Run) -> Run:
    """Runs a command of `data`."""

    def data(*arguments: object) -> Left:
        return run("data", *arguments)

    return data


# Bugs caught: options that do not arrive, JSON among other lines, a second call that packs anew.
def test_shard(images: Path, tmp_path: Path, data: Run) -> None:
    code, out, _ = data("shard", images, tmp_path / "out", "--shards", 3, "--quiet")
    assert (code, out.splitlines()) == (
        0,
        [f"{tmp_path / 'out'}: 8 images of 2 classes in 3 shards, 0.0 MiB"],
    )
    code, out, _ = data("shard", images, tmp_path / "out", "--json")
    told = json.loads(out)
    assert (code, told["images"], told["kept_shards"]) == (0, 8, 3)
    code, out, _ = data("shard", images, tmp_path / "flat", "--kind", "images", "--threads", 2, "--json")
    assert (code, json.loads(out)["classes"], json.loads(out)["shards"]) == (0, 0, 1)


# Bugs caught: wrong counts and extents, a corrupt image that passes, a sheet that is not written.
@pytest.mark.parametrize("packed", [False, True])
def test_check(images: Path, tmp_path: Path, data: Run, packed: bool) -> None:
    place = tmp_path / "out" if packed else images
    if packed:
        data("shard", images, place)
    code, out, _ = data("check", place, "--duplicates", "--json", "--sheet", tmp_path / "sheets" / "s.png")
    report = json.loads(out)
    assert code == 1
    assert report["kind"] == ("tfrecord" if packed else "class_folders")
    assert report["images"] == 8
    assert report["classes"] == {"cat": 3, "dog": 5}
    assert report["images_per_class"] == {"least": 3, "median": 4, "greatest": 5}
    assert report["height"] == {"least": 20, "median": 24, "greatest": 30}
    assert report["width"] == {"least": 30, "median": 30, "greatest": 30}
    assert report["corrupt"] == {"dog/no image.jpg": "truncated JPEG: the end-of-image marker is missing"}
    assert report["duplicates"] == [["dog/1.png", "dog/copy.png"]]
    assert report["bad_shards"] == ({} if packed else None)
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "s.png"))
    assert {(40 * n,) * 3 for n in range(6)} <= {tuple(color) for color in sheet.reshape(-1, 3).tolist()}
    code, out, _ = data("check", place, "--max-bad-share", 0.2, "--quiet")
    assert code == 0
    assert "corrupt  1 unreadable images (12.5 %)" in out
    assert "classes  2, of 3 to 5 images, median 4" in out


def test_check_fails_for_a_wrong_checksum(images: Path, tmp_path: Path, data: Run) -> None:
    (images / "dog" / "no image.jpg").unlink()
    data("shard", images, tmp_path / "out")
    shard = tmp_path / "out" / "images-00000-of-00001.tfrecord"
    shard.write_bytes(b"\0" * 8 + shard.read_bytes()[8:])  # a length, which the index makes unnecessary
    code, out, _ = data("check", tmp_path / "out", "--quiet")
    assert code == 1
    assert "images-00000-of-00001.tfrecord: its SHA-256 differs from the index" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shard", "nowhere", "out"], 1, "nowhere. Check the path"),
        (["shard", "{images}", "out", "--shards", "9"], 2, "8 images, 9 shards"),
        (["shard", "{images}", "{images}"], 2, "new or empty"),
        (["check", "nowhere"], 1, "nowhere. Check the path"),
        (["check", "{images}", "--sheet", "sheet.txt"], 2, "A picture must end in .png"),
        (["check", "{images}", "--kind", "tfrecord"], 1, "TFRecord shards"),
        (["check", "s4://bucket/images"], 1, "The scheme of s4:"),
    ],
)
def test_what_is_wrong_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Run,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, err = data(*(word.format(images=images) for word in arguments))
    assert got == code
    assert message in err
    assert "Traceback" not in err


# Bugs caught: a name that JSON or a terminal cannot hold, or that a terminal obeys.
def test_cruel_names(images: Path, tmp_path: Path, data: Run) -> None:
    for name in (b"new\nline.jpg", b"caf\xe9.jpg", b"\x1b[2J.jpg"):
        with open(os.path.join(os.fsencode(images / "cat"), name), "wb") as file:
            file.write(b"no image")
    os.rename(images / "dog", os.path.join(os.fsencode(images), b"d\xf6g"))
    data("shard", images, tmp_path / "out")
    for place in (images, tmp_path / "out"):
        code, out, _ = data("check", place, "--json")
        report = json.loads(out)
        assert code == 1
        assert report["classes"] == {"cat": 6, r"d\xf6g": 5}
        assert set(report["corrupt"]) == {
            r"cat/new\nline.jpg", r"cat/caf\xe9.jpg", r"cat/\x1b[2J.jpg", r"d\xf6g/no image.jpg",
        }  # fmt: skip
        code, out, _ = data("check", place, "--sheet", tmp_path / "s.png")
        assert out.isascii()
        assert "\x1b" not in out
        assert r"         cat/new\nline.jpg: not one of the formats" in out
