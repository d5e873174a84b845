"""Folders of images, the bundled digits, and the errors of data that is not what a recipe expects."""

import os

import fsspec
import numpy as np
import pytest

from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.recognition import recognize
from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data

KINDS = {"images": ImageFolder, "class_folders": ClassFolders}


def make(root, *names):
    """Create files that contain their own names."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.path.basename(path))


def names_of(source):
    return [source.image_name(i) for i in range(len(source))]


def test_class_folders_are_numbered_by_sorted_name(tmp_path):
    # Numbers in the order of the directory listing; a folder without images that shifts the classes after it.
    make(tmp_path, "n02/b.JPEG", "n01/z.jpg", "n01/A.Png", "n10/deep/er/x.webp", "n01/notes.txt", "stray.jpg")
    make(tmp_path, "n015/readme.txt")
    source = ClassFolders(tmp_path)
    assert source.class_names == ("n01", "n02", "n10")
    assert names_of(source) == ["n01/A.Png", "n01/z.jpg", "n02/b.JPEG", "n10/deep/er/x.webp"]
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 2]
    assert source.read(2) == b"b.JPEG"


def test_images_are_found_at_any_depth_in_order(tmp_path):
    # Resource forks of a Mac, `._x.jpg`, are not images.
    make(tmp_path, "b/2.bmp", "b/1.JPG", "a.jpeg", "b/c/d/e.png", "c.svg", "._a.jpeg", ".cache/y.jpg")
    source = open_source(Data(kind="images", path=str(tmp_path)))
    assert names_of(source) == ["a.jpeg", "b/1.JPG", "b/2.bmp", "b/c/d/e.png"]
    assert source.label(0) == -1
    assert source.read(3) == b"e.png"


def test_names_with_spaces_and_bytes_that_are_not_text(tmp_path):
    make(tmp_path, "a b/c d.jpg", b"caf\xe9.jpg", "日本.jpg")
    source = ImageFolder(tmp_path)
    assert {source.read(i) for i in range(3)} == {b"c d.jpg", b"caf\xe9.jpg", "日本.jpg".encode()}


# === What is left out ===


# Bugs caught: images next to folders left out, a class for each system folder or split, flowers taken for shards; in a
# store, a class for a folder without images.
@pytest.mark.parametrize(
    ("files", "kind", "names"),
    [
        (["a.jpg", "x/b.jpg", "y/c.jpg"], "images", ["a.jpg", "x/b.jpg", "y/c.jpg"]),
        (["x/b.jpg", "y/z/c.jpg", "notes.txt"], "class_folders", ["x/b.jpg", "y/z/c.jpg"]),
        (["2024/a.jpg", "empty/notes.txt"], "images", ["2024/a.jpg"]),
        (["x/a.jpg", "@eaDir/a.jpg/THUMB.jpg", "#recycle/b.jpg", "L.lrdata/c.jpg"], "images", ["x/a.jpg"]),
        (["lily-of-the-valley/a.jpg", "rose/b.jpg"], "class_folders", ["lily-of-the-valley/a.jpg", "rose/b.jpg"]),
        (["best-of-2023.jpg"], "images", ["best-of-2023.jpg"]),
        (["annotations/a.xml", "images/a.jpg", "images/b.jpg"], "images", ["images/a.jpg", "images/b.jpg"]),
        (["train/x/a.jpg", "val/x/b.jpg"], "images", ["train/x/a.jpg", "val/x/b.jpg"]),
        (["freight-train/a.jpg", "passenger-train/b.jpg"], "class_folders", ["freight-train/a.jpg", "passenger-train/b.jpg"]),
        (["bus/a.jpg", "test/b.jpg", "train/c.jpg"], "class_folders", ["bus/a.jpg", "test/b.jpg", "train/c.jpg"]),
    ],
)  # fmt: skip
def test_a_kind_that_leaves_out_no_image_is_recognized(tmp_path, files, kind, names):
    make(tmp_path, *files)
    for place in (str(tmp_path), f"file://{tmp_path}"):  # in a store, too
        found = recognize(place)
        assert found.kind == kind
        assert names_of(KINDS[kind](place)) == names


# Bug caught: a confusion matrix among the images of the next run.
def test_pictures_in_a_run_folder_are_left_out(tmp_path, logged):
    make(tmp_path, "x/a.jpg", "y/config.yaml", "y/b.jpg")
    make(tmp_path, "runs/r/config.yaml", "runs/r/checkpoints/state.json", "runs/r/probe/confusion.png")
    assert names_of(ImageFolder(tmp_path)) == ["x/a.jpg", "y/b.jpg"]
    assert any("1 folders of runs (runs/r)" in text for _, text in logged)
    assert recognize(str(tmp_path)).kind == "class_folders"
    assert ClassFolders(tmp_path).class_names == ("x", "y")


# Bug caught: a user's own folder that is replaced without a word.
def test_a_folder_of_the_name_of_the_bundled_digits(tmp_path, monkeypatch, caplog):
    make(tmp_path, "digits/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert recognize("digits").kind == "digits"
    assert "Write ./digits to read it" in caplog.text
    assert recognize("./digits").kind == "images"


# Bug caught: files that are left out without a word, and images next to class folders among them.
def test_what_is_left_out_is_reported(tmp_path, caplog):
    make(
        tmp_path,
        "x/1.jpg",
        "x/2.jpg",
        "y/3.jpg",
        "y/6.jpg",
        "x/._1.jpg",
        "x/@eaDir/1.jpg",
        "y/notes.txt",
        "y/4.CR2",
        "5.jpg",
    )
    (tmp_path / "y/0.jpg").touch()
    (tmp_path / "z").mkdir()
    (tmp_path / "z/0.jpg").touch()
    counts = {
        "empty": 2, "resource forks of macOS": 1, "created by the operating system or an editor": 1, "with extension .txt": 1,
        "pictures of a format that is not read, .cr2": 1,
    }  # fmt: skip
    assert ImageFolder(tmp_path).left_out.counts == counts
    stray = {"images next to the class folders, not in one of them": 1}
    source = ClassFolders(tmp_path)
    assert (source.left_out.counts, source.class_names) == (counts | stray, ("x", "y"))
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert ["y/4.CR2" in record.message for record in caplog.records] == [True, False, True]
    assert "folder z has no images and is not a class" in caplog.records[1].message
    assert "2 empty (y/0.jpg, z/0.jpg)" in caplog.records[2].message
    assert "not in one of them (5.jpg)" in caplog.records[2].message
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/left_out", recursive=True)
    try:
        assert ClassFolders("memory://left_out").left_out.counts == counts | stray
    finally:
        memory.rm("/left_out", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_which_most_pictures_are_left_out_is_refused(tmp_path, kind):
    make(tmp_path, "x/1.jpg", "x/2.cr2", "x/3.cr2")
    with pytest.raises(DataError, match=r"1 images; left out: 2 pictures .*\.cr2 \(x/2\.cr2"):
        KINDS[kind](tmp_path)


# === Links ===


# Bug caught: images that are left out because their disk is not mounted, without a word on the cause.
def test_broken_links_are_named(tmp_path):
    make(tmp_path, "x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg")
    (tmp_path / "x/5.jpg").symlink_to(tmp_path / "unmounted/5.jpg")
    (tmp_path / "z").symlink_to(tmp_path / "unmounted")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    left_out = ImageFolder(tmp_path).left_out
    assert left_out.counts == {"links whose target is missing": 4}
    assert left_out.pictures == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("files", "links", "names"),
    [
        # Bug caught: paths compared as strings, so that /x/data counted as above /x/data2.
        (["data/a/1.jpg", "dat/2.jpg"], {"data/a/link": "dat"}, ["a/1.jpg", "a/link/2.jpg"]),
        # Bug caught: a loop that goes through a linked folder and so has another path.
        (
            ["data/a/1.jpg", "other/deep/2.jpg"],
            {"data/link": "other", "other/deep/back": "data", "other/deep/round": "other"},
            ["a/1.jpg", "link/deep/2.jpg"],
        ),
        # Bug caught: which of two links is followed depends on the order of the directory listing.
        (
            ["data/a/1.jpg", "other/2.jpg"],
            {"data/a/m": "other", "data/a/b": "other", "data/a/z": "other"},
            ["a/1.jpg", "a/b/2.jpg"],
        ),
        # The link nearer to the root counts, though its name comes last.
        (
            ["data/a/b/1.jpg", "other/2.jpg"],
            {"data/a/b/m": "other", "data/a/z": "other"},
            ["a/b/1.jpg", "a/z/2.jpg"],
        ),
    ],
)
def test_linked_folders_are_followed_once(tmp_path, kind, files, links, names):
    make(tmp_path, *files)
    for link, target in links.items():
        os.symlink(tmp_path / target, tmp_path / link)
    assert names_of(KINDS[kind](tmp_path / "data")) == names


# Bug caught: images listed twice when the path is relative or itself a link, and so another fingerprint.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", ["a/loop", "loop", "a/b/loop"])
@pytest.mark.parametrize("target", ["data", "."])
def test_loops_are_not_walked_however_the_path_is_typed(tmp_path, monkeypatch, kind, loop, target):
    make(tmp_path, "data/a/1.jpg", "data/a/b/2.jpg", "data/c/3.jpg")
    os.symlink(tmp_path / target, tmp_path / "data" / loop)
    os.symlink(tmp_path / "data", tmp_path / "alias")
    for cwd, paths in (
        (".", (tmp_path / "data", "data", "./data/", "data/../data", "alias")),
        ("data", (".",)),
    ):
        monkeypatch.chdir(tmp_path / cwd)
        for path in paths:
            assert names_of(KINDS[kind](path)) == ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"], path


# === Errors ===


@pytest.mark.parametrize(
    ("kinds", "files", "path", "message"),
    [
        (("class_folders", "images", "tfrecord"), (), "nowhere", "nowhere"),
        (("class_folders", "images"), (), "", "is empty"),
        (("class_folders", "images"), ("sub/a.txt", "b.svg"), "", "2 entries, but no image"),
        (("class_folders", "images"), ("a.jpg",), "a.jpg", "is a file"),
        (("class_folders",), ("a.jpg", "b.jpg"), "", r"Set data\.kind to images"),
        (("class_folders", "images", "tfrecord", "tfds"), (), None, r"data\.path must be set"),
    ],
)
def test_errors(tmp_path, kinds, files, path, message):
    make(tmp_path, *files)
    for kind in kinds:
        with pytest.raises(DataError, match=message):
            open_source(Data(kind=kind, path=None if path is None else str(tmp_path / path)))


def test_validation_images_have_labels_even_if_training_images_have_none(tmp_path):
    make(tmp_path, "train/x.jpg", "val/cat/y.jpg", "val/dog/z.jpg")
    data = Data(kind="images", path=str(tmp_path / "train"), validation_path=str(tmp_path / "val"))
    source = open_source(data, validation=True)
    assert [source.label(i) for i in range(2)] == [0, 1]
    with pytest.raises(DataError, match="validation_path must be set"):
        open_source(Data(kind="images", path=str(tmp_path)), validation=True)


# === Digits ===


@pytest.fixture(scope="module")
def digits():
    return {split: open_source(Data(kind="digits", split=split)) for split in ("train", "test")}


def test_digits_are_the_same_in_every_release(digits):
    train, test = digits["train"], digits["test"]
    assert (len(train), len(test)) == (1437, 360)
    assert len({*names_of(train), *names_of(test)}) == 1797
    assert [train.image_name(i) for i in (0, 700, 1436)] == ["digits/0", "digits/877", "digits/1796"]
    images = np.stack([test.read(i) for i in range(360)])
    assert (images.shape, images.dtype) == ((360, 32, 32, 3), np.uint8)
    # OpenCV rounds some pixels otherwise without Intel's IPP, as on ARM.
    assert images.sum(dtype=np.int64) == pytest.approx(48_690_360, rel=1e-4)
    assert (images == images[..., :1]).all()
    places = {tuple(np.argwhere(image[..., 0]).min(0)) for image in images}
    assert len(places) > 50
    with pytest.raises(DataError, match="train or test"):
        open_source(Data(kind="digits", split="val"))


def test_raw_pixels_give_the_documented_accuracy(digits):
    # Another enlargement: at 16 px it would be 0.65, at 28 px 0.94.
    pixels, labels = {}, {}
    for split, source in digits.items():
        rows = np.stack([source.read(i)[..., 0].ravel() for i in range(len(source))]).astype(float)
        pixels[split] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        labels[split] = np.array([source.label(i) for i in range(len(source))])
    cosine = pixels["test"] @ pixels["train"].T
    nearest = np.argsort(-cosine, axis=1)[:, :20]
    weights = np.exp(np.take_along_axis(cosine, nearest, 1) / 0.07)
    votes = np.stack([(weights * (labels["train"][nearest] == c)).sum(1) for c in range(10)], 1)
    assert (votes.argmax(1) == labels["test"]).mean() == pytest.approx(0.88, abs=0.02)
