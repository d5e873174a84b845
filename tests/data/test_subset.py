import numpy as np
import pytest

from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.labels import open_labelled
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
    return ClassFolders(
        make_folders(
            tmp_path / "train", n01=["n01_1.JPEG", "n01_2.JPEG", "x.png"], n02=["n02_1.JPEG", "x.png"]
        )
    )


def subset(tmp_path, source, text):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    return read_subset(tmp_path / "list.txt", source)


# Bugs caught: labels of the list's numbering instead of the source's, classes that a subset loses, line ends of Windows.
def test_images_are_found_by_file_name_or_path(tmp_path, source):
    found = subset(tmp_path, source, "n02_1.JPEG\r\n\n n01/x.png\nn01_2.JPEG")
    assert [found.image_name(i) for i in range(len(found))] == [
        "n01/n01_2.JPEG",
        "n01/x.png",
        "n02/n02_1.JPEG",
    ]
    assert [found.label(i) for i in range(len(found))] == [0, 0, 1]
    assert found.class_names == ("n01", "n02")
    assert found.read(2) == b"not decoded here"


# Bugs caught: a wrong list that is used in part, an error that names one line of many.
def test_all_that_is_wrong_with_a_list_is_told(tmp_path, source):
    missing = "\n".join(f"gone_{i}.JPEG" for i in range(25))
    with pytest.raises(DataError) as caught:
        subset(tmp_path, source, f"n01_1.JPEG\nn01/n01_1.JPEG\nx.png\n{missing}")
    told = str(caught.value)
    assert "25 of 28 are not among the images: gone_0.JPEG, " in told
    assert "gone_19.JPEG ..." in told
    assert "gone_20" not in told
    assert "1 of 28 may be several images: x.png" in told
    assert "1 of 28 are named twice: n01/n01_1.JPEG" in told


# Bug caught: an empty list that means all images.
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_refused(tmp_path, source, text):
    with pytest.raises(DataError, match="which names none"):
        subset(tmp_path, source, text)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_that_cannot_be_read_is_refused(tmp_path, source, content):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match="readable text file"):
        read_subset(tmp_path / "list.txt", source)


def recipe(tmp_path, **changes):
    data = {
        "kind": "class_folders",
        "path": str(tmp_path / "train"),
        "validation_path": str(tmp_path / "val"),
    }
    return ProbeRecipe(
        name="x", data=data, optimizer={"learning_rate": 1.0}, train={"epochs": 1, "batch_size": 2}, **changes
    )


# Bug caught: classes that are numbered one way for training and another for validation.
def test_classes_that_differ_are_named(tmp_path, source):
    make_folders(tmp_path / "val", n02=["a.png"], n03=["b.png"])
    with pytest.raises(DataError) as caught:
        open_labelled(recipe(tmp_path))
    assert "1 only among the training images: n01; 1 only among the validation images: n03." in str(
        caught.value
    )


# Bug caught: a message that sends to the training images where the validation images are missing.
def test_missing_validation_images_are_told_by_their_folder(tmp_path, source):
    with pytest.raises(DataError, match=r"Not found: .*val"):
        open_labelled(recipe(tmp_path))


# Bugs caught: a subset of the validation images too, labels of the whole source.
def test_a_subset_is_of_the_training_images(tmp_path, source):
    make_folders(tmp_path / "val", n01=["a.png"], n02=["b.png", "c.png"])
    (tmp_path / "list.txt").write_text("n02_1.JPEG\nn01_1.JPEG")
    data = open_labelled(recipe(tmp_path, subset=str(tmp_path / "list.txt")))
    np.testing.assert_array_equal(data.train_labels, [0, 1])
    np.testing.assert_array_equal(data.validation_labels, [0, 1, 1])
    assert data.class_names == ("n01", "n02")


# Bug caught: images without labels that are trained on as class -1.
def test_images_without_labels_are_refused(tmp_path, source):
    make_folders(tmp_path / "val", n01=["a.png"])
    whole = recipe(tmp_path)
    with pytest.raises(DataError, match="A classifier needs labels"):
        open_labelled(
            whole.model_copy(
                update={
                    "data": whole.data.model_copy(
                        update={"kind": "images", "validation_path": str(tmp_path / "train")}
                    )
                }
            )
        )


# Bugs caught: a share of all images and not of each class, a class of which nothing is taken, a seed that does nothing.
def test_a_share_is_of_each_class(tmp_path):
    classes = {"few": 3, "some": 40, "many": 200}
    source = ClassFolders(
        make_folders(
            tmp_path, **{name: [f"{name}{i}.png" for i in range(count)] for name, count in classes.items()}
        )
    )
    names = draw_subset(source, share=0.1, seed=3)
    assert names == draw_subset(source, share=0.1, seed=3) != draw_subset(source, share=0.1, seed=4)
    assert {name: sum(n.startswith(name) for n in names) for name in classes} == {
        "few": 1,
        "some": 4,
        "many": 20,
    }
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    assert len(read_subset(tmp_path / "list.txt", source)) == len(names)


def test_a_share_needs_classes_and_names_of_one_line(tmp_path):
    make_folders(tmp_path, n01=["a.png", " b\n.png"])
    with pytest.raises(DataError, match="2 of 2 images without one"):
        draw_subset(ImageFolder(tmp_path), share=0.5, seed=0)
    with pytest.raises(DataError, match="Rename"):
        draw_subset(ClassFolders(tmp_path), share=1, seed=0)
