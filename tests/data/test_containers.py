"""Images of lists, archives and tables are those of the folder that they were made of: order, bytes, classes, crops."""

import csv
import io
import json
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders
from swav_tf.data.loader import training_batches
from swav_tf.data.recognition import recognize
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import contents_sha256, fingerprint, open_source
from swav_tf.data.survey import survey
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data

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


def write_tar(folder):
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("photos/._x.jpg"))
        for name, _ in reversed(rows(folder)):
            tar.add(folder / name, f"photos/{name}")
    return folder / "photos.tar"


def write_class_tars(folder):
    (folder / "tars").mkdir()
    for label in CLASSES:
        with tarfile.open(folder / "tars" / f"{label}.tar", "w") as tar:
            for name, own in rows(folder):
                if own == label:
                    tar.add(folder / name, name.rpartition("/")[2])
    return folder / "tars"


def write_samples(folder):
    """Write webdataset shards, in which each label follows its image."""
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"x-train-{shard:05d}.tar", "w") as tar:
            for number, (name, label) in list(enumerate(rows(folder)))[6 * shard : 6 * shard + 6]:
                tar.add(folder / name, f"{number:03d}.jpg")
                document = json.dumps({"label": label, "size": 3}).encode()
                content = (label.encode(), "cls") if shard else (document, "json")
                info = tarfile.TarInfo(f"{number:03d}.{content[1]}")
                info.size = len(content[0])
                tar.addfile(info, io.BytesIO(content[0]))
    (folder / "shards" / "x-val-00000.tar").write_bytes(b"unread")
    return folder / "shards"


def write_hugging_face(folder):
    """Write two Parquet files as `datasets` does: structs, row groups, names of classes in the metadata."""
    (folder / "data").mkdir()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata)
    for part in range(2):
        own = rows(folder)[6 * part : 6 * part + 6]
        images = [{"bytes": (folder / name).read_bytes(), "path": name} for name, _ in own]
        table = pa.table({"image": images, "label": [CLASSES.index(label) for _, label in own]}, schema)
        pq.write_table(table, folder / "data" / f"train-{part:05d}-of-00002.parquet", row_group_size=4)
    (folder / "data" / "test-00000-of-00001.parquet").write_bytes(b"unread")
    return folder / "data"


def write_parquet(folder):
    # Views are the types of Polars.
    content = pa.array([(folder / name).read_bytes() for name, _ in rows(folder)], pa.binary_view())
    labels = pa.array([label for _, label in rows(folder)], pa.string_view())
    table = pa.table({"content": content, "Category": labels, "width": [120] * 12})
    pq.write_table(table, folder / "images.parquet", row_group_size=5)
    return folder / "images.parquet"


NAMED = (write_csv, write_tsv, write_json, write_jsonl, write_tar, write_hugging_face, write_class_tars)
MAKERS = {
    "list": [write_csv, write_tsv, write_json, write_jsonl],
    "tar": [write_tar, write_class_tars, write_samples],
    "parquet": [write_hugging_face, write_parquet],
}
CASES = [(kind, make) for kind, makers in MAKERS.items() for make in makers]


@pytest.fixture(params=CASES, ids=[make.__name__ for _, make in CASES])
def made(request, folder, tmp_path):
    """Return kind and path of one container of the images."""
    kind, make = request.param
    for path in folder.glob("*/*.jpg"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    made = make(tmp_path)
    if kind != "list":
        for label in CLASSES:
            shutil.rmtree(tmp_path / label)
    return kind, make, made


# Bugs caught: another order or numbering of classes, a byte-order mark in a name, offsets that are off.
def test_the_images_are_those_of_the_folder(folder, made, tmp_path_factory):
    kind, make, path = made
    assert recognize(str(path)).kind == kind
    here = ClassFolders(folder)
    there = open_source(Data(path=str(path)))
    names = [there.image_name(i) for i in range(12)]
    assert (len(there), len(set(names))) == (12, 12)
    assert make not in NAMED or names == [name for name, _ in rows(folder)]
    assert there.class_names == here.class_names == CLASSES
    assert [there.label(i) for i in range(12)] == [here.label(i) for i in range(12)]
    there = pickle.loads(pickle.dumps(there))  # as crop processes get it
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there.read, range(12))) == [here.read(i) for i in range(12)]
    report = check_data(there, threads=2)
    assert (report.corrupt, report.classes) == ({}, dict.fromkeys(CLASSES, 4))
    packed = write_shards(there, tmp_path_factory.mktemp("packed") / "shards").index
    packed = open_source(Data(path=packed.folder))
    assert (packed.class_names, [packed.read(i) for i in range(12)]) == (
        CLASSES,
        [here.read(i) for i in range(12)],
    )
    before = contents_sha256(there)
    changed = next(
        file for file in [path, *sorted(path.rglob("*r*"))] if file.is_file() and "test" not in file.name
    )
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert contents_sha256(there) != before


# Bug caught: an order, or crops after a resumption, other than those of the folder.
def test_batches_and_resumption_are_those_of_the_folder(folder, made, recipe):
    settings = recipe(folder, batch_size=4)

    def batches(source, start):
        found = training_batches(
            settings, source, steps_per_epoch=3, start_step=start, total_steps=5, workers=1, worker=0,
            replica_batch_size=4, bad_images=BadImages(None, images=12, max_share=0), labeled=True,
        )  # fmt: skip
        return [part.numpy() for batch in found for part in batch]

    expected = batches(ClassFolders(folder), 2)
    for one, other in zip(batches(open_source(Data(path=str(made[2]))), 2), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_object_stores(folder, made):
    memory = fsspec.filesystem("memory")
    kind, _, path = made
    memory.put(str(path.parent), "/containers", recursive=True)
    try:
        places = (str(path), f"memory://containers/{path.name}")
        here, there = (open_source(Data(kind=kind, path=place)) for place in places)
        assert fingerprint(there) == fingerprint(here)
        assert [there.read(i) for i in (0, 11)] == [here.read(i) for i in (0, 11)]
    finally:
        memory.rm("/containers", recursive=True)


# Bugs caught: classes in the order 1, 10, 2; numbers that pandas wrote as floats; a column that is no label; texts that
# are read as numbers, and then are one class; -1, which is no label, as a class.
@pytest.mark.parametrize(
    ("lines", "settings", "classes", "labels"),
    [
        ("image;target\nant/00.jpg;10\nant/01.jpg;2\nant/02.jpg;\n", {}, ("2", "10"), [1, 0, -1]),
        ("id,y\nant/00.jpg,1.0\nant/01.jpg,0.0\n", {"label_key": "y"}, ("0", "1"), [1, 0]),
        ("id,y\nant/00.jpg,-1\nant/01.jpg,10\nant/02.jpg,2\n", {"label_key": "y"}, ("2", "10"), [-1, 1, 0]),
        ("ant/00.jpg,b\nant/01.jpg,a\n", {}, ("a", "b"), [1, 0]),
        (
            "ant/00.jpg,C50.01\nant/01.jpg,C501\nant/02.jpg,C50.0\n",
            {},
            ("C50.0", "C50.01", "C501"),
            [1, 2, 0],
        ),
        ("ant/00.jpg,v2\nant/01.jpg,2.0\nant/02.jpg,2\n", {}, ("2", "2.0", "v2"), [2, 1, 0]),
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


# === Archives and tables ===


def add(tar, name, data, **settings):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in settings.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def test_what_an_archive_leaves_out_is_counted(tmp_path, caplog):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            add(tar, name, b"x")
        add(tar, "d.jpg", b"")
        add(tar, "e.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg")
        add(tar, "a.txt", b"a caption")
        add(tar, "notes.txt", b"x")
    source = open_source(Data(path=str(tmp_path / "x.tar")))
    links = "links, which an archive stores without their content"
    assert source.left_out.counts == {"empty": 1, links: 1, "with extension .txt": 1}
    assert (source.class_names, source.label(0)) == ((), -1)
    assert "3 images; left out" in caplog.text


# Bugs caught: two images under one name after `tar -r`, of which a name gives either; images behind the first end of
# `cat a.tar b.tar` that are left out without a word.
def test_updated_and_joined_archives(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x/1.jpg", b"old"), ("x/2.jpg", b"2"), ("x/1.jpg", b"new")):
            add(tar, name, data)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "y/3.jpg", b"3")
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "joined.tar").write_bytes(joined)
    source = open_source(Data(path=str(tmp_path / "joined.tar")))
    found = {source.image_name(i): (source.read(i), source.label(i)) for i in range(len(source))}
    assert found == {"x/1.jpg": (b"new", 0), "x/2.jpg": (b"2", 0), "y/3.jpg": (b"3", 1)}
    assert source.left_out.counts == {"replaced by a later image of the same name": 1}
    (tmp_path / "joined.tar").write_bytes(joined + b"no header")
    with pytest.raises(DataError, match=f"no header at byte {len(joined)}"):
        open_source(Data(path=str(tmp_path / "joined.tar")))


# Bugs caught: labels that are written as floats, as pandas does beside a gap, and count for none; declared classes
# without a labeled image that count as classes.
def test_labels_as_floats(tmp_path):
    labels = [2.0, 0.0, float("nan"), 0.5]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, label in enumerate(labels):
            add(tar, f"{number}.jpg", b"x")
            add(tar, f"{number}.json", json.dumps({"label": label}).encode())
    pq.write_table(pa.table({"image": [b"x"] * 4, "label": labels}), tmp_path / "x.parquet")
    for name in ("x.tar", "x.parquet"):
        source = open_source(Data(path=str(tmp_path / name)))
        assert (source.class_names, source.labels().tolist()) == (("0", "2"), [1, 0, -1, -1])


def test_declared_classes_without_labels(folder, tmp_path):
    names = json.dumps({"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}})
    image = next(folder.rglob("*.jpg")).read_bytes()
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], {"huggingface": names})
    pq.write_table(pa.table({"image": [image] * 3, "label": [-1] * 3}, schema), tmp_path / "x.parquet")
    assert open_source(Data(path=str(tmp_path / "x.parquet"))).class_names == ("a", "b")
    assert survey(Data(path=str(tmp_path / "x.parquet"))).classes == 0


# Bugs caught: a validation set that is read for training, or the other way round.
def test_splits(folder, tmp_path):
    def write(path, count):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [b"x"] * count, "label": ["a"] * count}), path)

    write(tmp_path / "both" / "train.parquet", 5)
    write(tmp_path / "both" / "valid-00.parquet", 3)
    write(tmp_path / "own" / "test.parquet", 2)
    both, own = str(tmp_path / "both"), str(tmp_path / "own")
    assert [len(open_source(Data(path=path))) for path in (both, str(tmp_path), f"{both}/t*.parquet")] == [
        5,
        5,
        5,
    ]
    assert len(open_source(Data(path=both, split="validation"))) == 3
    assert len(open_source(Data(path=both, validation_split="val"), validation=True)) == 3
    assert len(open_source(Data(path=own))) == 2
    assert len(open_source(Data(path=str(folder), validation_path=own), validation=True)) == 2
    assert len(open_source(Data(path=str(folder), validation_path=both), validation=True)) == 3
    (tmp_path / "both" / "valid-00.parquet").rename(tmp_path / "both" / "test.parquet")
    assert len(open_source(Data(path=str(folder), validation_path=both), validation=True)) == 3
    with pytest.raises(DataError, match=r"split 'validation'\. Received: files of test and train"):
        open_source(Data(path=both, split="val"))


# Bugs caught: a group that each of many threads reads, or that is never let go.
def test_row_groups_are_shared_and_let_go(folder, tmp_path, monkeypatch):
    table = pa.table({"image": [bytes([row]) * 100 for row in range(40)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    source, reads = open_source(Data(path=str(tmp_path / "x.parquet"))), []
    read = source._groups._read
    monkeypatch.setattr(source._groups, "_read", lambda group: (reads.append(group), read(group))[1])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.read, range(40)))
    assert found == table.column(0).to_pylist()
    assert sorted(reads) == [0, 1, 2, 3]
    monkeypatch.setattr("swav_tf.data.parquet.HELD_BYTES", 1500)
    source._groups._held.clear()
    for index in (0, 10, 0):
        source.read(index)
    assert (len(source._groups._held), reads[4:]) == (1, [0, 1, 0])


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
        ("photo.jpg", b"\xff\xd8\xff", "Received: .*photo.jpg, an image. Pass the folder"),
        ("notes.rar", b"Rar!", "none of them"),
        ("empty.csv", b"", "must have a column of paths.*Received: nothing"),
        ("a.csv", b"width,height\n1,2\n", "must have a column of paths.*Received: width, height"),
        ("b.csv", b"path\nx.jpg\nx.jpg\n", "each image once. Received: 1 repeated ones: x.jpg"),
        ("c.csv", b"path\nx.jpg\ny.jpg\n", "0 images; left out: 2 missing"),
        ("d.csv", b"path\ncaf\xe9.jpg\n", "in UTF-8. Received"),
        ("e.json", b"[1,", "must be CSV, TSV, JSON"),
        ("g.tar.gz", b"\x1f\x8b", "must be uncompressed"),
        ("h.tar", b"x" * 2000, "an intact tar archive"),
        ("i.parquet", b"PAR1 x", "an intact Parquet file"),
        ("f.jsonl", b'{"path": "x.jpg", "label": [1, 2]}\n', "one label for each image"),
    ],
)  # fmt: skip
def test_files_that_are_no_images(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(Data(path=str(tmp_path / name)))


# Bug caught: images behind a damaged place that are left out without a word.
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_archives(folder, tmp_path, damage):
    shutil.copytree(folder, tmp_path / "copy")
    path = write_tar(tmp_path / "copy")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    if damage == "truncated":
        del data[last.offset_data + 5 :]
    else:
        data[last.offset : last.offset_data] = b"x" * (last.offset_data - last.offset)
    path.write_bytes(data)
    with pytest.raises(DataError, match="an intact tar archive"):
        open_source(Data(path=str(path)))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("class_folders", "label\nx", "images without labels of their own"),
        ("images", "path\n00.jpg", "without labels"),
        ("images", "path,label\n" + "".join(f"z{i}.jpg,a\n" for i in range(12)), "12 of 12 are not among the images"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(folder, tmp_path, kind, labels, message):
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(DataError, match=message):
        open_source(Data(kind=kind, path=str(folder), labels=str(tmp_path / "labels.csv")))
