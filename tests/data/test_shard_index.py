"""Damaged and hostile indices are refused; the shards are those that commit 8d665af wrote."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from swav_tf.data.tfrecord import open_shards
from swav_tf.plumbing.errors import DataError

SHARDS = Path(__file__).parents[1] / "golden" / "shards"
IMAGES, CLASSES = 10, 2


@pytest.fixture
def out(tmp_path):
    return shutil.copytree(SHARDS, tmp_path / "out")


def change(out, edit):
    document = json.loads((out / "index.json").read_text())
    edit(document)
    (out / "index.json").write_text(json.dumps(document))


def replace_records(out, records):
    table = io.BytesIO()
    np.save(table, records, allow_pickle=True)
    (out / "index.records.npy").write_bytes(table.getvalue())
    sha256 = hashlib.sha256(table.getvalue()).hexdigest()
    change(out, lambda document: document["files"].update({"index.records.npy": sha256}))


def test_it_names_no_file_outside(out):
    for name in ("../secret", "/etc/passwd", "..", "", "a/b", "a\0b", "gs://bucket/x"):
        change(out, lambda document, name=name: document["shards"][0].update(name=name))
        with pytest.raises(DataError, match="in its own folder"):
            open_shards(str(out))


def test_a_link_out_of_the_folder_is_refused(out):
    shard = out / "images-00001-of-00003.tfrecord"
    shard.rename(out.parent / "elsewhere")
    shard.symlink_to(out.parent / "elsewhere")
    with pytest.raises(DataError, match=r"is a link to .*elsewhere"):
        open_shards(str(out))


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(images=IMAGES + 1),
        lambda d: d.update(shards=[]),
        lambda d: d["shards"][0].update(bytes=-1),
        lambda d: d["shards"][0].update(examples=7.5e300),
        lambda d: d.pop("classes"),
        lambda d: d.update(classes=["one"]),
        lambda d: d.update(files={}),
        lambda d: d.update(format="other"),
    ],
)
def test_what_does_not_fit_is_refused(out, edit):
    change(out, edit)
    with pytest.raises(DataError, match=r"must match|must be an index"):
        open_shards(str(out))


def test_files_cut_short_or_missing_are_named(out):
    for path in [*out.glob("index.*"), out / "images-00000-of-00003.tfrecord"]:
        data = path.read_bytes()
        path.write_bytes(data[:-2])  # the last byte of index.json is a newline
        with pytest.raises(DataError, match=path.name):
            open_shards(str(out))
        path.unlink()
        if path.name != "index.json":
            with pytest.raises(DataError, match=rf"{path.name}|No such file"):
                open_shards(str(out))
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("column", "value"), [(0, 0), (0, 2**40), (1, -1), (1, 2**62), (2, CLASSES), (2, -2)]
)
def test_records_outside_of_their_shard(out, column, value):
    records = np.load(out / "index.records.npy")
    records[5, column] = value
    replace_records(out, records)
    with pytest.raises(DataError, match="outside the shards, or classes that do not exist"):
        open_shards(str(out))


def test_nothing_is_unpickled(out):
    replace_records(out, np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="OBJECT array"):
        open_shards(str(out))
