"""Labeled images of a classifier, and subsets of them by a list."""

from types import SimpleNamespace

import numpy as np
import pytest

from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.labels import open_labeled, renumbered
from swav_tf.data.sharding import write_shards
from swav_tf.data.subset import draw_subset, read_subset
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.classifier import ProbeRecipe


def make_folders(root, **classes):
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file in files:
            (root / name / file).write_bytes(b"not decoded here")
    return root


@pytest.fixture
def source(tmp_path):
    classes = {"n01": ["n01_1.JPEG", "n01_2.JPEG", "x.png"], "n02": ["n02_1.JPEG", "x.png"]}
    return ClassFolders(make_folders(tmp_path / "train", **classes))


@pytest.fixture
def subset(tmp_path, source):
    """subset(content) -> the images that a list with this content names."""

    def subset(content):
        (tmp_path / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_subset(tmp_path / "list.txt", source)

    return subset


# === Subsets ===


# Bugs caught: labels of the list's numbering instead of the source's, classes that a subset loses, line ends of Windows.
def test_images_are_found_by_file_name_or_path(subset):
    found = subset("n02_1.JPEG\r\n\n n01/x.png\nn01_2.JPEG")
    names = ["n01/n01_2.JPEG", "n01/x.png", "n02/n02_1.JPEG"]
    assert [found.image_name(i) for i in range(len(found))] == names
    assert [found.label(i) for i in range(len(found))] == [0, 0, 1]
    assert found.class_names == ("n01", "n02")
    assert found.read(2) == b"not decoded here"


# Bug caught: an invisible character at the start of a list, paths of another system.
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_other_systems_are_read(subset, encoding):
    found = subset("n01\\x.png\r\nn02_1.JPEG\r\n".encode(encoding))
    assert [found.image_name(i) for i in range(len(found))] == ["n01/x.png", "n02/n02_1.JPEG"]


# Bugs caught: a wrong list that is used in part, an error that names one line of many.
def test_all_errors_of_a_list_are_reported(subset):
    missing = "\n".join(f"gone_{i}.JPEG" for i in range(25))
    with pytest.raises(DataError) as caught:
        subset(f"n01_1.JPEG\nn01/n01_1.JPEG\nx.png\n{missing}")
    message = str(caught.value)
    assert "25 of 28 are not among the images: gone_0.JPEG, " in message
    assert "gone_19.JPEG ..." in message
    assert "gone_20" not in message
    assert "1 of 28 may be several images: x.png" in message
    assert "1 of 28 are named twice: n01/n01_1.JPEG" in message
    assert "is, for example, n01/n01_1.JPEG" in message


@pytest.mark.parametrize(
    ("content", "message"), [("", "no name"), ("\n \n", "no name"), (b"\xff\xe9", "readable text file")]
)
def test_unusable_lists_are_refused(tmp_path, source, subset, content, message):
    with pytest.raises(DataError, match=message):
        subset(content)
    with pytest.raises(DataError, match="readable text file"):
        read_subset(tmp_path / "nowhere.txt", source)


# Bugs caught: a share of all images instead of each class, a class of which nothing is taken, an ignored seed.
def test_a_share_is_of_each_class(tmp_path):
    classes = {"few": 3, "some": 40, "many": 200}
    files = {name: [f"{name}{i}.png" for i in range(count)] for name, count in classes.items()}
    source = ClassFolders(make_folders(tmp_path, **files))
    names = draw_subset(source, share=0.1, seed=3)
    assert names == draw_subset(source, share=0.1, seed=3) != draw_subset(source, share=0.1, seed=4)
    counts = {name: sum(n.startswith(name) for n in names) for name in classes}
    assert counts == {"few": 1, "some": 4, "many": 20}
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    assert len(read_subset(tmp_path / "list.txt", source)) == len(names)


def test_a_share_needs_classes_and_names_of_one_line(tmp_path):
    make_folders(tmp_path, n01=["a.png", " b\n.png"])
    with pytest.raises(DataError, match="2 of 2 images have no class"):
        draw_subset(ImageFolder(tmp_path), share=0.5, seed=0)
    some = SimpleNamespace(labels=lambda: np.array([0, -1, 0]), image_name="abc".__getitem__)
    assert draw_subset(some, share=1, seed=0) == ["a", "c"]
    make_folders(tmp_path / "other", n01=["caf\udce9.png"])
    for folder in (tmp_path, tmp_path / "other"):
        with pytest.raises(DataError, match="Rename"):
            draw_subset(ClassFolders(folder), share=1, seed=0)


# === Labeled images ===


def recipe(tmp_path, *, kind="class_folders", **changes):
    data = {"kind": kind, "path": str(tmp_path / "train"), "validation_path": str(tmp_path / "val")}
    train = {"epochs": 1, "batch_size": 2}
    return ProbeRecipe(name="x", data=data, optimizer={"learning_rate": 1.0}, train=train, **changes)


# Bugs caught: a subset of the validation images too, labels of the complete source.
def test_a_subset_is_of_the_training_images(tmp_path, subset):
    make_folders(tmp_path / "val", n01=["a.png"], n02=["b.png", "c.png"])
    subset("n02_1.JPEG\nn01_1.JPEG")
    data = open_labeled(recipe(tmp_path, subset=str(tmp_path / "list.txt")))
    np.testing.assert_array_equal(data.train_labels, [0, 1])
    np.testing.assert_array_equal(data.validation_labels, [0, 1, 1])
    assert data.class_names == ("n01", "n02")


# Bug caught: images that are labeled in part, refused although the subset names only labeled ones.
def test_a_subset_of_images_labeled_in_part(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.png,x\nb.png,y\nc.png,\n")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"not decoded here")
    data = {"kind": "list", "path": str(tmp_path / "labels.csv"), "validation_path": str(tmp_path / "val")}
    make_folders(tmp_path / "val", x=["a.png"], y=["b.png"])
    settings = recipe(tmp_path).model_dump(mode="json") | {"data": data}
    with pytest.raises(DataError, match="1 of 3 without one"):
        open_labeled(ProbeRecipe.model_validate(settings))
    found = open_labeled(ProbeRecipe.model_validate(settings | {"subset": str(tmp_path / "list.txt")}))
    np.testing.assert_array_equal(found.train_labels, [0, 1])


# Bugs caught: numbers in text order (0, 1, 10, 2), positions instead of names.
@pytest.mark.parametrize(
    ("own", "names", "expected"),
    [
        (("0", "1", "10", "2"), tuple(map(str, range(11))), [0, 1, 10, 2]),
        (("00", "07"), tuple(map(str, range(11))), [0, 7]),
        (("dog", "cat"), ("ant", "cat", "dog"), [2, 1]),
        (("dog", "cow"), ("ant", "cat", "dog"), [2, -1]),
        ((), ("0", "1", "10", "2"), [0, 1, 3]),
        (("0", "1", "10", "2"), (), [0, 1, 10, 2]),
        (("07", "7"), ("07", "7"), [0, 1]),
    ],
)
def test_classes_are_matched_by_name_and_number(own, names, expected):
    labels = np.arange(len(expected)) if own else np.array([0, 1, 2])
    np.testing.assert_array_equal(renumbered(labels, own, names), expected)


# Bug caught: a validation set without some classes is refused, or its classes are counted from 0.
def test_a_validation_set_may_lack_classes(tmp_path, source, caplog):
    make_folders(tmp_path / "val", n02=["b.png", "c.png"])
    (tmp_path / "val" / "n01").mkdir()
    np.testing.assert_array_equal(open_labeled(recipe(tmp_path)).validation_labels, [1, 1])
    assert "1 of 2 classes have no validation image: n01." in caplog.text
    assert "folder n01 has no image" in caplog.text


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        # Bug caught: classes numbered one way for training and another for validation.
        (
            {"n02": ["a.png"], "n03": ["b.png"]},
            "1 only among the validation images: n03. The training images have: n01, n02.",
        ),
        # Bug caught: a message about the training images where the validation images are missing.
        ({}, "Not found: .*val"),
    ],
)
def test_validation_images_that_do_not_fit_are_refused(tmp_path, source, validation, message):
    make_folders(tmp_path / "val", **validation)
    with pytest.raises(DataError, match=message):
        open_labeled(recipe(tmp_path))


# Bug caught: images without labels are trained on as class -1.
def test_images_without_labels_are_refused(tmp_path, source):
    for name in ("train", "val"):
        write_shards(ImageFolder(source.root), tmp_path / "shards" / name, shards=1)
    with pytest.raises(DataError, match="training images, 5 of 5 without one"):
        open_labeled(recipe(tmp_path / "shards", kind="tfrecord"))
