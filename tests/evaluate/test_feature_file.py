import contextlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluate import feature_file
from evaluate.feature_file import FeatureFile, _classes_of, read_feature_file, write_feature_file
from swav_tf.plumbing.errors import DataError, UsageError

FACTS = {"model": {"weights_sha256": "x"}, "class_names": ["cat", "dög"], "source": {"path": "ü"}}
FORMATS = [".npz", ".npy", ".parquet"]
NAMES = ["a/1.jpg", 'a,"b".png', "ü", "the last one"]
FEATURES = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def write(path, facts=FACTS, features=FEATURES):
    labels, index = np.array([0, 1, -1, 1]), np.array([0, 1, 4, 9])
    write_feature_file(FeatureFile(path, features, labels, index, NAMES, facts))


# Bugs caught: names and labels of other rows, a row group that is lost, facts that do not come back.
@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(feature_file, "ROW_GROUP", 3)
    path = tmp_path / "new" / f"x{ending}"
    for _ in range(2):  # the second one replaces the first
        write(path)
    file = read_feature_file(path)
    np.testing.assert_array_equal(file.features, FEATURES)
    assert file.labels.tolist() == [0, 1, -1, 1]
    assert file.index.tolist() == [0, 1, 4, 9]
    assert (list(file.names), file.facts) == (NAMES, FACTS)
    assert [file.class_name(label) for label in (-1, 1, 7)] == ["", "dög", "7"]
    assert not list(path.parent.glob(".*"))


# Bugs caught: an .npy that is read into memory, or that other tools cannot read as a plain array.
def test_npy_is_a_plain_array_on_disk(tmp_path):
    write(tmp_path / "x.npy")
    assert isinstance(read_feature_file(tmp_path / "x.npy").features, np.memmap)
    assert np.load(tmp_path / "x.npy").shape == (4, 4)
    lines = (tmp_path / "x.npy.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["name,label,class,index", "a/1.jpg,0,cat,0", '"a,""b"".png",1,dög,1']


# Bugs caught: parquet that data frames cannot read, folders of parts by older versions that are refused.
def test_parquet_is_a_table(tmp_path):
    write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["name", "label", "class", "index", "features"]
    assert table["class"].to_pylist() == ["cat", "dög", "", "dög"]
    (tmp_path / "parts.parquet").mkdir()
    for number in (0, 1):
        pq.write_table(table.slice(2 * number, 2), tmp_path / "parts.parquet" / f"part-{number:05d}.parquet")
    parts = read_feature_file(tmp_path / "parts.parquet")
    np.testing.assert_array_equal(parts.features, FEATURES)
    assert (list(parts.names), parts.facts) == (NAMES, FACTS)


# Bugs caught: a traceback for the lists that pandas and others write, lists of several lengths that are shifted.
def test_parquet_by_other_tools(tmp_path):
    write(tmp_path / "x.parquet")
    table = pa.Table.from_pylist(pq.read_table(tmp_path / "x.parquet").to_pylist())
    pq.write_table(table, tmp_path / "y.parquet")
    np.testing.assert_array_equal(read_feature_file(tmp_path / "y.parquet").features, FEATURES)
    rows = table.to_pylist()
    rows[1]["features"], rows[2]["features"] = rows[1]["features"][1:], [0.0, *rows[2]["features"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "z.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    for name in ("z", "empty"):
        with pytest.raises(DataError, match="must be a feature file"):
            read_feature_file(tmp_path / f"{name}.parquet")


# Bug caught: feature files of other tools that are refused for lack of facts.
def test_arrays_by_other_tools(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float64))
    np.savez(tmp_path / "x.npz", features=np.ones((3, 2), np.float16), labels=np.array([1, 0, 1], np.uint8))
    assert read_feature_file(tmp_path / "x.npy").labels.tolist() == [-1, -1, -1]
    file = read_feature_file(tmp_path / "x.npz")
    assert (file.labels.tolist(), file.facts) == ([1, 0, 1], {})


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in a feature file was run",))


def truncated(path):
    write(path)
    path.write_bytes(path.read_bytes()[:150])


def without_a_line(path):
    write(path)
    table = path.with_name(path.name + ".csv")
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:-1]), encoding="utf-8")


# Bugs caught: a traceback or a wrong answer for damaged or hostile files, or files of something else.
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.npz", lambda path: path.write_bytes(b"not a zip"), "it contains no plain arrays"),
        ("x.npz", lambda path: path.write_bytes(b""), "cannot be read"),
        ("x.npy", lambda path: path.write_bytes(b"text"), "cannot be read"),
        ("x.parquet", lambda path: path.write_bytes(b"text"), "cannot be read"),
        ("x.parquet", lambda path: path.mkdir(), "no part-"),
        (
            "x.parquet",
            lambda path: pq.write_table(pa.table({"a": [1]}), path),
            "columns a, but no `features`",
        ),
        ("x.npz", truncated, "cannot be read"),
        ("x.npy", truncated, "cannot be read"),
        ("x.npy", without_a_line, "a label and a name for each of its 4 rows. Received: labels \\(3,"),
        (
            "x.npz",
            lambda path: np.savez(path, features=np.eye(3), labels=np.ones((3, 1))),
            "each of its 3 rows. Received: labels \\(3, 1",
        ),
        ("x.npz", lambda path: np.savez(path, features=np.eye(3), facts="[1]"), "facts must be an object"),
        (
            "x.parquet",
            lambda path: pq.write_table(pa.table({"features": ["a"]}), path),
            "must be a column of lists of numbers; it is one of string",
        ),
        ("x.npz", lambda path: np.savez(path, images=np.ones(3)), "it has images, but no `features`"),
        ("x.npz", lambda path: np.savez(path, features=np.array([Hostile()])), "cannot be read"),
        ("x.npy", lambda path: np.save(path, np.array([Hostile()])), "cannot be read"),
        ("x.npy", lambda path: np.save(path, np.ones(3)), "must contain features"),
        ("x.npy", lambda path: np.save(path, np.ones((3, 2), np.int64)), "floating-point type.*int64"),
        ("x.npy", lambda path: np.save(path, np.ones((0, 2))), "must contain features"),
    ],
)
def test_other_files_are_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_feature_file(tmp_path / name)


def test_missing_files_and_other_formats(tmp_path):
    with pytest.raises(UsageError, match=r"not found: .*x.npz. Create one with `swav-tf features`"):
        read_feature_file(tmp_path / "x.npz")
    for name in ("x.csv", "x"):
        for use in (read_feature_file, write):
            with pytest.raises(UsageError, match=r"must end in .npz, .npy or .parquet"):
                use(tmp_path / name)


# Bug caught: a kill between the renames of two files, after which old features have new labels or facts.
@pytest.mark.parametrize("renames", range(3))
def test_a_kill_while_files_are_renamed(tmp_path, monkeypatch, renames):
    path, done, replace = tmp_path / "x.npy", [], os.replace
    write(path)

    def replace_or_die(*names):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(names)
        replace(*names)

    monkeypatch.setattr(os, "replace", replace_or_die)
    with contextlib.suppress(KeyboardInterrupt):
        write(path, {"other": 1}, FEATURES + 1)
    monkeypatch.undo()
    assert not path.exists()
    write(path, {"other": 1}, FEATURES + 1)
    file = read_feature_file(path)
    np.testing.assert_array_equal(file.features, FEATURES + 1)
    assert file.facts == {"other": 1}


# Bugs caught: text labels that fail inside `int()`, fractions that are cut off, labels that are refused for a null.
def test_labels_of_other_tools(tmp_path):
    rows = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "x.npz", features=rows, labels=np.array(["dog", "cat", "", "dog"]))
    file = read_feature_file(tmp_path / "x.npz")
    assert file.labels.tolist() == [1, 0, -1, 1]
    assert file.class_names == ["cat", "dog"]
    np.savez(tmp_path / "y.npz", features=rows, labels=np.array([0, 1, 1.5, 2]))
    with pytest.raises(DataError, match="whole numbers or text"):
        read_feature_file(tmp_path / "y.npz")
    for labels in (["dog", "cat", None, "dog"], [1, 0, None, 1]):
        table = {"label": labels, "index": range(4), "name": list("abcd")}
        columns = {name: pa.array(values) for name, values in table.items()}
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 4)
        pq.write_table(pa.table(columns), tmp_path / "z.parquet")
        assert read_feature_file(tmp_path / "z.parquet").labels.tolist() == [1, 0, -1, 1]


# Bug caught: names that Python reads as one number.
def test_text_labels_that_are_almost_numbers():
    labels, facts = _classes_of(np.array(["1_11", "11_1", "+1", "1"]))
    assert sorted(labels.tolist()) == [0, 1, 2, 3]
    assert sorted(facts["class_names"]) == ["+1", "1", "11_1", "1_11"]
    assert _classes_of(np.array(["07", "-1"]))[0].tolist() == [7, -1]
