"""Images of lists, archives and tables are those of the folder that they were made of: order, bytes, classes, crops."""

import csv
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders
from swav_tf.data.loader import training_batches
from swav_tf.data.recognition import recognize
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import contents_sha256, fingerprint, open_source
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Data

pytest.importorskip("tensorflow")

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_photo, encoded):
    """Return a folder of 12 images in three class folders, each with its own gray level."""
    root = tmp_path_factory.mktemp("folder")
    for i in range(12):
        path = root / CLASSES[i // 4] / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = small_photo.copy()
        pixels[:, :60] = 20 * i
        path.write_bytes(encoded(pixels))
    return root


def rows(folder):
    return [(f"{path.parent.name}/{path.name}", path.parent.name) for path in sorted(folder.glob("*/*.jpg"))]


def write_csv(folder, **settings):
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("label", "path"), *((label, name) for name, label in rows(folder))])
    return path


def write_tsv(folder):
    path = folder / "list.tsv"
    lines = [f"{name.replace('/', chr(92))}\t{label}\r\n" for name, label in rows(folder)]
    path.write_bytes("".join(lines).encode("utf-16"))
    return path


def write_json(folder):
    path = folder / "list.json"
    path.write_text(json.dumps(dict(rows(folder))))
    return path


def write_jsonl(folder):
    path = folder / "metadata.jsonl"
    lines = [json.dumps({"file_name": name, "width": 120, "category": label}) for name, label in rows(folder)]
    path.write_text("\n".join(lines))
    return path


MAKERS = {"list": [write_csv, write_tsv, write_json, write_jsonl]}
CASES = [(kind, make) for kind, makers in MAKERS.items() for make in makers]


@pytest.fixture(params=CASES, ids=[make.__name__ for _, make in CASES])
def made(request, folder, tmp_path):
    """Return kind and path of one container of the images."""
    kind, make = request.param
    for path in folder.glob("*/*.jpg"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    return kind, make(tmp_path)


# Bugs caught: another order or numbering of classes, a byte-order mark in a name, offsets that are off.
def test_the_images_are_those_of_the_folder(folder, made, tmp_path):
    kind, path = made
    assert recognize(str(path)).kind == kind
    here = ClassFolders(folder)
    there = open_source(Data(path=str(path)))
    assert [there.image_name(i) for i in range(len(there))] == [name for name, _ in rows(folder)]
    assert there.class_names == here.class_names == CLASSES
    assert [there.label(i) for i in range(12)] == [here.label(i) for i in range(12)]
    there = pickle.loads(pickle.dumps(there))  # as crop processes get it
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there.read, range(12))) == [here.read(i) for i in range(12)]
    report = check_data(there, threads=2)
    assert (report.corrupt, report.classes) == ({}, dict.fromkeys(CLASSES, 4))
    packed = [write_shards(source, tmp_path / f"shards{n}").index for n, source in enumerate((here, there))]
    assert packed[0].shards == packed[1].shards
    before = contents_sha256(there)
    path.write_bytes(path.read_bytes() + b"\n")
    assert contents_sha256(there) != before


# Bug caught: an order, or crops after a resumption, other than those of the folder.
def test_batches_and_resumption_are_those_of_the_folder(folder, made, recipe):
    settings = recipe(folder, batch_size=4)

    def batches(source, start):
        found = training_batches(
            settings, source, steps_per_epoch=3, start_step=start, total_steps=5, workers=1, worker=0,
            replica_batch_size=4, bad_images=BadImages(None, images=12, max_share=0), labelled=True,
        )  # fmt: skip
        return [part.numpy() for batch in found for part in batch]

    expected = batches(ClassFolders(folder), 2)
    for one, other in zip(batches(open_source(Data(path=str(made[1]))), 2), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_object_stores(folder, made):
    memory = fsspec.filesystem("memory")
    memory.put(str(made[1].parent), "/containers", recursive=True)
    try:
        here, there = (
            open_source(Data(path=p)) for p in (str(made[1]), f"memory://containers/{made[1].name}")
        )
        assert fingerprint(there) == fingerprint(here)
        assert [there.read(i) for i in (0, 11)] == [here.read(i) for i in (0, 11)]
    finally:
        memory.rm("/containers", recursive=True)


# Bugs caught: classes in the order 1, 10, 2; numbers that pandas wrote as floats; a column that is no label.
@pytest.mark.parametrize(
    ("lines", "settings", "classes", "labels"),
    [
        ("image;target\nant/00.jpg;10\nant/01.jpg;2\nant/02.jpg;\n", {}, ("2", "10"), [1, 0, -1]),
        ("id,y\nant/00.jpg,1.0\nant/01.jpg,0.0\n", {"label_key": "y"}, ("0", "1"), [1, 0]),
        ("ant/00.jpg,b\nant/01.jpg,a\n", {}, ("a", "b"), [1, 0]),
        ("File,Width\nant/00.jpg,3\n", {}, (), [-1]),
    ],
)
def test_columns_and_classes(folder, lines, settings, classes, labels):
    (folder / "other.csv").write_text(lines)
    source = open_source(Data(path=str(folder / "other.csv"), **settings))
    assert source.class_names == classes
    assert [source.label(i) for i in range(len(source))] == labels


# Bug caught: rows that are dropped without a word.
def test_what_a_list_leaves_out_is_counted(folder, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    lines = [
        "path",
        *(f"{folder}/{name}" for name, _ in rows(folder)),
        "empty.jpg",
        "./gone.jpg",
        "notes.txt",
    ]
    (tmp_path / "some.csv").write_text("\n".join(lines))
    counts = {"empty": 1, "missing or not accessible": 1, "with extension .txt": 1}
    assert open_source(Data(path=str(tmp_path / "some.csv"))).left_out.counts == counts


# === Labels of a list for images of a folder ===


def test_labels_for_a_folder(folder, tmp_path, caplog):
    (tmp_path / "labels.csv").write_text("id,label\n00,x\nbee/04.jpg,y\n11.jpg,x\nother.jpg,z\n")
    source = open_source(Data(path=str(folder), labels=str(tmp_path / "labels.csv")))
    assert source.class_names == ("x", "y")
    found = {source.image_name(i): source.label(i) for i in range(12)}
    assert found.pop("ant/00.jpg") == found.pop("cat/11.jpg") == 0
    assert found.pop("bee/04.jpg") == 1
    assert set(found.values()) == {-1}
    assert "9 of 12 images have no label; 1 of 4 names are of no image" in caplog.text


# === Errors ===


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photo.jpg", b"\xff\xd8\xff", "Received: .*photo.jpg, an image. Give the folder"),
        ("notes.rar", b"Rar!", "none of them"),
        ("empty.csv", b"", "must have a column of paths.*Received: nothing"),
        ("a.csv", b"width,height\n1,2\n", "must have a column of paths.*Received: width, height"),
        ("b.csv", b"path\nx.jpg\nx.jpg\n", "each image once. Received: 1 repeated ones: x.jpg"),
        ("c.csv", b"path\nx.jpg\ny.jpg\n", "0 images; left out: 2 missing"),
        ("d.csv", b"path\ncaf\xe9.jpg\n", "in UTF-8. Received"),
        ("e.json", b"[1,", "must be CSV, TSV, JSON"),
        ("f.jsonl", b'{"path": "x.jpg", "label": [1, 2]}\n', "one label for each image"),
    ],
)  # fmt: skip
def test_files_that_are_no_images(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(Data(path=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("class_folders", "label\nx", "images without own labels"),
        ("images", "path\n00.jpg", "without labels"),
        ("images", "path,label\n" + "".join(f"z{i}.jpg,a\n" for i in range(12)), "12 of 12 are not among the images"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(folder, tmp_path, kind, labels, message):
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(DataError, match=message):
        open_source(Data(kind=kind, path=str(folder), labels=str(tmp_path / "labels.csv")))
