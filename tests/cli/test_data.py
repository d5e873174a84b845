"""`data check`, `data shard` and `data subset`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """Write seven images of two classes, one a copy of another, and a file that is not an image."""
    root = tmp_path / "images"
    for number in range(6):
        path = root / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + 2 * number, 30, 3), 40 * number, np.uint8)).save(path)
    (root / "dog" / "copy.png").write_bytes((root / "dog" / "1.png").read_bytes())
    (root / "dog" / "no image.jpg").write_bytes(b"\xff\xd8 truncated")
    return root


# Bugs caught: options without effect, JSON among other lines, a second call that packs again.
def test_shard(images, tmp_path, output):
    printed = output(f"data shard {images} {tmp_path}/out --shards 3 --quiet")
    assert printed == f"{tmp_path}/out: 8 images of 2 classes in 3 shards, 0.0 MiB\n"
    again = json.loads(output(f"data shard {images} {tmp_path}/out --json"))
    assert (again["images"], again["kept_shards"]) == (8, 3)
    flat = json.loads(output(f"data shard {images} {tmp_path}/flat --kind images --threads 2 --json"))
    assert (flat["classes"], flat["shards"]) == (0, 1)


# Bugs caught: wrong counts and sizes, a corrupt image that passes.
@pytest.mark.parametrize("kind", ["class_folders", "tfrecord"])
def test_check(kind, images, tmp_path, run, output):
    place = images
    if kind == "tfrecord":
        place = tmp_path / "out"
        output(f"data shard {images} {place}")
    result = run(f"data check {place} --duplicates --json")
    report = json.loads(result.out)
    assert (result.code, report["kind"], report["images"]) == (1, kind, 8)
    assert report["classes"] == {"cat": 3, "dog": 5}
    assert report["images_per_class"] == {"least": 3, "median": 4, "greatest": 5}
    assert report["height"] == {"least": 20, "median": 24, "greatest": 30}
    assert report["width"] == {"least": 30, "median": 30, "greatest": 30}
    assert report["corrupt"] == {"dog/no image.jpg": "corrupt JPEG: no frame header"}
    assert report["duplicates"] == [["dog/1.png", "dog/copy.png"]]
    assert report["bad_shards"] == ({} if kind == "tfrecord" else None)
    printed = output(f"data check {place} --max-bad-share 0.2 --quiet")
    assert "corrupt  1 unreadable images (12.5 %)" in printed
    assert "classes  2, of 3 to 5 images, median 4" in printed


# Bug caught: a locale without UTF-8, as in bare containers, in which such names could not be opened or printed.
@pytest.mark.multiprocess
def test_names_in_an_ascii_locale(images, tmp_path):
    (images / "cat").rename(images / "ké")
    (images / "ké" / "0.png").rename(images / "ké" / "ñ.png")
    (images / "ké" / "ü.png").write_bytes(b"no image")
    line = [sys.executable, "-m", "cli.main", "data", "check", str(images), "--duplicates"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    for options in ([], ["--json"]):
        done = subprocess.run([*line, *options], env=environment, capture_output=True, check=False)
        assert done.returncode == 1
        assert b"bug" not in done.stderr
        if options:
            assert json.loads(done.stdout)["classes"] == {"dog": 5, "ké": 4}
            assert set(json.loads(done.stdout)["corrupt"]) == {"dog/no image.jpg", "ké/ü.png"}


def test_check_of_a_wrong_checksum(images, tmp_path, run, output):
    (images / "dog" / "no image.jpg").unlink()
    output(f"data shard {images} {tmp_path}/out")
    shard = tmp_path / "out" / "images-00000-of-00001.tfrecord"
    shard.write_bytes(b"\0" * 8 + shard.read_bytes()[8:])  # a length, which the index makes unnecessary
    result = run(f"data check {tmp_path}/out --quiet")
    assert result.code == 1
    assert "images-00000-of-00001.tfrecord: its SHA-256 differs from the index" in result.out


# Bugs caught: names that JSON or a terminal cannot hold, or control sequences that a terminal executes.
def test_check_of_unusual_names(images, tmp_path, run, output):
    for name in (b"new\nline.jpg", b"caf\xe9.jpg", b"\x1b[2J.jpg"):
        with open(os.path.join(os.fsencode(images / "cat"), name), "wb") as file:
            file.write(b"no image")
    os.rename(images / "dog", os.path.join(os.fsencode(images), b"d\xf6g"))
    output(f"data shard {images} {tmp_path}/out")
    corrupt = {r"cat/new\nline.jpg", r"cat/caf\xe9.jpg", r"cat/\x1b[2J.jpg", r"d\xf6g/no image.jpg"}
    for place in (images, tmp_path / "out"):
        report = json.loads(run(f"data check {place} --json").out)
        assert report["classes"] == {"cat": 6, r"d\xf6g": 5}
        assert set(report["corrupt"]) == corrupt
        printed = run(f"data check {place}").out
        assert printed.isascii()
        assert "\x1b" not in printed
        assert r"         cat/new\nline.jpg: not one of the formats" in printed


# Bugs caught: a draw that ignores its seed, or that is not equal for the classes.
def test_subset(images, tmp_path, output):
    def draw(seed):
        line = f"data subset {images} --share 0.5 --seed {seed} --output {tmp_path}/new/list.txt"
        assert output(line) == f"{tmp_path}/new/list.txt: 4 of 8 images\n"
        return (tmp_path / "new" / "list.txt").read_text().splitlines()

    names = draw(1)
    assert sorted(name.partition("/")[0] for name in names) == ["cat", "cat", "dog", "dog"]
    assert names == draw(1)
    assert {tuple(draw(seed)) for seed in range(5)} != {tuple(names)}


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("shard nowhere out", 1, "nowhere. Check the path"),
        ("shard {images} out --shards 9", 2, "8 images, 9 shards"),
        ("shard {images} {images}", 2, "new or empty"),
        ("shard {images} s4://bucket/x", 2, "a path on this machine"),
        ("check nowhere", 1, "nowhere. Check the path"),
        ("check {images} --kind tfrecord", 1, "TFRecord shards"),
        ("check s4://bucket/images", 1, "The scheme of s4:"),
        ("subset digits --share 0 --output x.txt", 2, "Invalid value for '--share'"),
        ("subset nowhere --share 0.5 --output x.txt", 1, "nowhere. Check the path"),
    ],
)
def test_refusals(line, code, part, images, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused("data " + line.format(images=images), code, part)
    assert [path for path in tmp_path.rglob("*.t*")] == []
