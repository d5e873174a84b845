import contextlib
import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluate.feature_cache import write_feature_file
from evaluate.feature_file import Rows, read_feature_file
from swav_tf.plumbing.errors import DataError, UsageError

FACTS = {"model": {"weights_sha256": "x"}, "class_names": ["cat", "dög"], "source": {"path": "ü"}}
FORMATS = [".npz", ".npy", ".parquet"]


def parts():
    draw = np.random.default_rng(0)
    yield Rows(
        draw.normal(size=(3, 4)).astype(np.float32),
        np.array([0, 1, -1]),
        np.array([0, 1, 4]),
        ["a/1.jpg", 'a,"b".png', "ü"],
    )
    yield Rows(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.int64), [])
    yield Rows(draw.normal(size=(1, 4)).astype(np.float32), np.array([1]), np.array([9]), ["the last one"])


# Bugs caught: a part that is lost or out of order, names and labels against other rows, facts that do not come back.
@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_is_read(tmp_path, ending):
    path = tmp_path / "new" / f"x{ending}"
    for _ in range(2):  # the second one replaces the first
        write_feature_file(path, parts, FACTS)
    file = read_feature_file(path)
    np.testing.assert_array_equal(file.rows.features, np.concatenate([rows.features for rows in parts()]))
    assert file.rows.labels.tolist() == [0, 1, -1, 1]
    assert file.rows.index.tolist() == [0, 1, 4, 9]
    assert list(file.rows.names) == ["a/1.jpg", 'a,"b".png', "ü", "the last one"]
    assert file.facts == FACTS
    assert [file.class_name(label) for label in (-1, 1, 7)] == ["", "dög", "7"]
    assert not list(path.parent.glob(".*"))


# Bug caught: an .npy that is read into memory, or that others cannot read as a plain array.
def test_npy_is_a_plain_array_on_disk(tmp_path):
    write_feature_file(tmp_path / "x.npy", parts, FACTS)
    assert isinstance(read_feature_file(tmp_path / "x.npy").rows.features, np.memmap)
    assert np.load(tmp_path / "x.npy").shape == (4, 4)
    assert (tmp_path / "x.npy.csv").read_text(encoding="utf-8").splitlines()[:3] == [
        "name,label,class,index",
        "a/1.jpg,0,cat,0",
        '"a,""b"".png",1,dög,1',
    ]


# Bug caught: parquet that data frames cannot read as one table.
def test_parquet_is_one_table_for_others(tmp_path):
    write_feature_file(tmp_path / "x.parquet", parts, FACTS)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["name", "label", "class", "index", "features"]
    assert table["class"].to_pylist() == ["cat", "dög", "", "dög"]
    assert len(table["features"][0].as_py()) == 4


# Bug caught: feature files of other tools that are refused for want of facts.
def test_arrays_of_others(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float64))
    np.savez(tmp_path / "x.npz", features=np.ones((3, 2), np.float16), labels=np.array([1, 0, 1], np.uint8))
    assert read_feature_file(tmp_path / "x.npy").rows.labels.tolist() == [-1, -1, -1]
    file = read_feature_file(tmp_path / "x.npz")
    assert (file.rows.labels.tolist(), file.facts) == ([1, 0, 1], {})


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in a feature file was run",))


def truncated(path):
    write_feature_file(path, parts, FACTS)
    path.write_bytes(path.read_bytes()[:150])


def without_a_line(path):
    write_feature_file(path, parts, FACTS)
    table = path.with_name(path.name + ".csv")
    table.write_text(
        "".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8"
    )


# Bugs caught: a traceback or a wrong answer for files that are damaged, hostile or of something else.
@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("x.npz", lambda path: path.write_bytes(b"not a zip"), "as one: it holds no plain arrays"),
        ("x.npz", lambda path: path.write_bytes(b""), "cannot be read as one"),
        ("x.npy", lambda path: path.write_bytes(b"text"), "cannot be read as one"),
        ("x.parquet", lambda path: path.write_bytes(b"text"), "cannot be read as one"),
        ("x.parquet", lambda path: path.mkdir(), "no part-"),
        ("x.npz", truncated, "cannot be read as one"),
        ("x.npy", truncated, "cannot be read as one"),
        ("x.npy", without_a_line, "a label and a name for each of its 4 rows. Received: 3 labels"),
        ("x.npz", lambda path: np.savez(path, images=np.ones(3)), "it has images, but not `features`"),
        (
            "x.npz",
            lambda path: np.savez(path, features=np.array([Hostile()])),
            "cannot be read as one",
        ),
        ("x.npy", lambda path: np.save(path, np.array([Hostile()])), "cannot be read as one"),
        ("x.npy", lambda path: np.save(path, np.ones(3)), "must hold features"),
        ("x.npy", lambda path: np.save(path, np.ones((3, 2), np.int64)), "floating-point type.*int64"),
        ("x.npy", lambda path: np.save(path, np.ones((0, 2))), "must hold features"),
        (
            "x.npz",
            lambda path: np.savez(path, features=np.ones((3, 2)), labels=np.zeros(2)),
            "for each of its 3 rows",
        ),
    ],
)
def test_what_is_no_feature_file_is_refused(tmp_path, name, make, told):
    make(tmp_path / name)
    with pytest.raises(DataError, match=told):
        read_feature_file(tmp_path / name)


# Bug caught: a missing file or another format that is blamed on the data.
def test_missing_files_and_other_formats(tmp_path):
    with pytest.raises(UsageError, match="must be there"):
        read_feature_file(tmp_path / "x.npz")
    for name in ("x.csv", "x"):
        with pytest.raises(UsageError, match=r"must end in .npz, .npy or .parquet"):
            read_feature_file(tmp_path / name)
        with pytest.raises(UsageError, match=r"must end in .npz, .npy or .parquet"):
            write_feature_file(tmp_path / name, parts, FACTS)


# Bug caught: half a file under the final name, or litter, when the disk is full.
@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, ending):
    path = tmp_path / f"x{ending}"
    write_feature_file(path, parts, FACTS)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*_):
        yield next(parts())
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"could not be written.*No space left"):
        write_feature_file(path, full, {"other": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert read_feature_file(path).facts == FACTS


def others():
    for rows in parts():
        yield Rows(rows.features + 1, rows.labels, rows.index, rows.names)


# Bug caught: a kill between two of the files, after which the old features pass for the new ones.
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("moves", range(4))
def test_a_break_while_files_take_their_places(tmp_path, monkeypatch, ending, moves):
    path = tmp_path / f"x{ending}"
    write_feature_file(path, parts, FACTS)
    old = np.array(read_feature_file(path).rows.features)
    made, replace = [], os.replace

    def replace_or_die(*names):
        if len(made) == moves:
            raise KeyboardInterrupt
        made.append(names)
        replace(*names)

    monkeypatch.setattr(os, "replace", replace_or_die)
    with contextlib.suppress(KeyboardInterrupt):
        write_feature_file(path, others, {"other": 1})
    monkeypatch.undo()
    if path.exists():
        file = read_feature_file(path)
        np.testing.assert_array_equal(file.rows.features, old if file.facts == FACTS else old + 1)
        assert file.facts in (FACTS, {"other": 1})
    write_feature_file(path, others, {"other": 1})
    assert read_feature_file(path).facts == {"other": 1}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
