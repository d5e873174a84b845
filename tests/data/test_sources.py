"""Folders of images, and what is said when they are not what they should be."""

import os

import numpy as np
import pytest

from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Data


def make(root, *names):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.path.basename(path))


def test_class_folders_are_numbered_by_sorted_name(tmp_path):
    # Numbers in the order of the directory listing, which differs between machines.
    make(tmp_path, "n02/b.JPEG", "n01/z.jpg", "n01/A.Png", "n10/deep/er/x.webp", "n01/notes.txt", "stray.jpg")
    source = ClassFolders(tmp_path)
    assert source.class_names == ("n01", "n02", "n10")
    assert [source.image_name(i) for i in range(len(source))] == [
        "n01/A.Png", "n01/z.jpg", "n02/b.JPEG", "n10/deep/er/x.webp",
    ]  # fmt: skip
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 2]
    assert source.read(2) == b"b.JPEG"


def test_a_folder_without_images_is_no_class(tmp_path):
    # An empty folder that shifts the numbers of all classes behind it.
    make(tmp_path, "a/1.jpg", "b/readme.txt", "c/1.jpg")
    source = ClassFolders(tmp_path)
    assert source.class_names == ("a", "c")
    assert source.label(1) == 1


def test_images_are_found_at_any_depth_in_order(tmp_path):
    make(tmp_path, "b/2.bmp", "b/1.JPG", "a.jpeg", "b/c/d/e.png", "c.gif")
    source = open_source(Data(kind="images", path=str(tmp_path)))
    assert [source.image_name(i) for i in range(len(source))] == [
        "a.jpeg",
        "b/1.JPG",
        "b/2.bmp",
        "b/c/d/e.png",
    ]
    assert source.label(0) == -1
    assert source.read(3) == b"e.png"


def test_hidden_files_are_left_out(tmp_path):
    # A Mac's resource forks, `._x.jpg`, are no images.
    make(tmp_path, "._x.jpg", "x.jpg", ".cache/y.jpg")
    assert len(ImageFolder(tmp_path)) == 1


def test_names_with_spaces_and_bytes_that_are_no_text(tmp_path):
    # A name that cannot be encoded, and ends the run with a UnicodeError.
    make(tmp_path, "a b/c d.jpg", b"caf\xe9.jpg")
    source = ImageFolder(tmp_path)
    assert {source.read(i) for i in range(2)} == {b"c d.jpg", b"caf\xe9.jpg"}


def test_linked_folders_are_followed_but_not_round(tmp_path):
    make(tmp_path, "data/x.jpg", "elsewhere/y.jpg")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    source = ImageFolder(tmp_path / "data")
    assert [source.image_name(i) for i in range(len(source))] == ["x.jpg", "link/y.jpg"]


KINDS = {"images": ImageFolder, "class_folders": ClassFolders}


def names_of(kind, path):
    source = KINDS[kind](path)
    return [source.image_name(i) for i in range(len(source))]


# Bug caught: paths compared as strings, so that /x/photos lay "above" /x/photos2 and its images were left out.
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_to_a_folder_whose_name_begins_the_same_is_followed(tmp_path, kind):
    make(tmp_path, "photos2/a/1.jpg", "photos/2.jpg")
    os.symlink(tmp_path / "photos", tmp_path / "photos2" / "a" / "link")
    assert names_of(kind, tmp_path / "photos2") == ["a/1.jpg", "a/link/2.jpg"]


# Bugs caught: images listed twice when the path is relative or itself a link: another fingerprint for the
# same folder, and a run that does not go on.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", ["a/loop", "loop", "a/b/loop"])
@pytest.mark.parametrize("target", ["data", "."])
def test_no_loop_is_walked_however_the_path_is_typed(tmp_path, monkeypatch, kind, loop, target):
    make(tmp_path, "data/a/1.jpg", "data/a/b/2.jpg", "data/c/3.jpg")
    os.symlink(tmp_path / target, tmp_path / "data" / loop)
    os.symlink(tmp_path / "data", tmp_path / "alias")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "data", "data", "./data/", "data/../data", "alias"):
        assert names_of(kind, path) == ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"], path
    monkeypatch.chdir(tmp_path / "data")
    assert names_of(kind, ".") == ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"]


# Bug caught: a loop that goes through a linked folder and so bears another path.
@pytest.mark.parametrize("kind", KINDS)
def test_no_loop_through_another_folder_is_walked(tmp_path, kind):
    make(tmp_path, "data/a/1.jpg", "other/deep/2.jpg")
    os.symlink(tmp_path / "other", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "other" / "deep" / "back")
    os.symlink(tmp_path / "other", tmp_path / "other" / "deep" / "round")
    assert names_of(kind, tmp_path / "data") == ["a/1.jpg", "link/deep/2.jpg"]


# Bug caught: which of two links is followed, and so the images' names, as the disk happens to list them.
def test_of_two_links_to_one_folder_the_first_by_name_counts(tmp_path):
    make(tmp_path, "other/1.jpg")
    for name in ("m", "a", "z", "c"):
        (tmp_path / "data").mkdir(exist_ok=True)
        os.symlink(tmp_path / "other", tmp_path / "data" / name)
    assert names_of("images", tmp_path / "data") == ["a/1.jpg"]


@pytest.mark.parametrize("kind", ["class_folders", "images", "tfrecord"])
def test_a_missing_folder_is_named(tmp_path, kind):
    with pytest.raises(DataError, match="nowhere"):
        open_source(Data(kind=kind, path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("kind", ["class_folders", "images", "tfrecord", "tfds"])
def test_a_path_must_be_given(kind):
    with pytest.raises(DataError, match=r"data\.path must be set"):
        open_source(Data(kind=kind))


@pytest.mark.parametrize("kind", ["class_folders", "images"])
def test_an_empty_folder_and_one_without_images(tmp_path, kind):
    with pytest.raises(DataError, match="is empty"):
        open_source(Data(kind=kind, path=str(tmp_path)))
    make(tmp_path, "sub/a.txt", "b.gif")
    with pytest.raises(DataError, match="2 entries, but no image"):
        open_source(Data(kind=kind, path=str(tmp_path)))


def test_a_file_for_a_folder(tmp_path):
    make(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="is a file"):
        ImageFolder(tmp_path / "a.jpg")


def test_a_flat_folder_given_for_class_folders(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(DataError, match=r"Set data\.kind to images"):
        ClassFolders(tmp_path)


def test_validation_images_are_labelled_even_beside_unlabelled_ones(tmp_path):
    make(tmp_path, "train/x.jpg", "val/cat/y.jpg", "val/dog/z.jpg")
    data = Data(kind="images", path=str(tmp_path / "train"), validation_path=str(tmp_path / "val"))
    source = open_source(data, validation=True)
    assert [source.label(i) for i in range(2)] == [0, 1]
    with pytest.raises(DataError, match="validation_path must be set"):
        open_source(Data(kind="images", path=str(tmp_path)), validation=True)


class TestDigits:
    def test_splits_are_fixed_disjoint_and_whole(self):
        # Another split or other places on each machine, run or release.
        train, test = (open_source(Data(kind="digits", split=split)) for split in ("train", "test"))
        assert (len(train), len(test)) == (1437, 360)
        names = {s.image_name(i) for s in (train, test) for i in range(len(s))}
        assert len(names) == 1797
        assert [train.image_name(i) for i in (0, 700, 1436)] == ["digits/0", "digits/877", "digits/1796"]
        assert sum(int(test.read(i).astype(int).sum()) for i in range(360)) == 48_690_360

    def test_images_are_gray_and_inside_the_canvas(self):
        source = open_source(Data(kind="digits"))
        corners = set()
        for i in range(300):
            image = source.read(i)
            assert image.shape == (32, 32, 3)
            assert image.dtype == np.uint8
            assert (image == image[..., :1]).all()
            rows, columns = np.nonzero(image[..., 0])
            assert rows.max() - rows.min() < 24
            assert columns.max() - columns.min() < 24
            corners.add((rows.min(), columns.min()))
        assert len(corners) > 50  # places differ

    def test_raw_pixels_give_the_documented_accuracy(self):
        # Another enlargement: at 16 px it would be 0.65, at 28 px 0.94.
        train, test = (open_source(Data(kind="digits", split=split)) for split in ("train", "test"))
        x, y = (
            np.stack([s.read(i)[..., 0].ravel() for i in range(len(s))]).astype(float) for s in (train, test)
        )
        labels, truth = (np.array([s.label(i) for i in range(len(s))]) for s in (train, test))
        cosine = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (
            x / np.linalg.norm(x, axis=1, keepdims=True)
        ).T
        nearest = np.argsort(-cosine, axis=1)[:, :20]
        weights = np.exp(np.take_along_axis(cosine, nearest, 1) / 0.07)
        votes = np.stack([(weights * (labels[nearest] == c)).sum(1) for c in range(10)], 1)
        assert (votes.argmax(1) == truth).mean() == pytest.approx(0.88, abs=0.02)

    def test_an_unknown_split(self):
        with pytest.raises(DataError, match="train and test"):
            open_source(Data(kind="digits", split="val"))
