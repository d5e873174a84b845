import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluate import feature_parts
from evaluate.backends.foreign import Contract
from evaluate.feature_file import read_feature_file, write_feature_file
from evaluate.feature_parts import Part, Rows, command_of, find_problems, read_facts
from evaluate.features import export_features, extract_features
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.models import NumpyBackend, assert_same_features, class_folders

SCRIPT = Path(__file__).parent / "run_features.py"


def make(folders, folder, *numbers, count=3, model=None, **settings):
    for number in numbers:
        part = Part(folder, number, count)
        extract_features(model or NumpyBackend(), class_folders(folders), part, batch_size=4, **settings)
    return folder


@pytest.fixture
def whole(tmp_path, folders):
    """One process's features, with an unreadable image."""
    (folders / "cat" / "02.png").write_bytes(b"not an image")
    extract_features(NumpyBackend(), class_folders(folders), tmp_path / "whole.npy", batch_size=4)
    return read_feature_file(tmp_path / "whole.npy")


# Bug caught: a folder that can never be complete, as one part has no readable image.
def test_a_part_without_readable_images(tmp_path, folders):
    for number in (*range(4), *range(4, 8)):
        (folders / "cat" / f"{number:02d}.png").write_bytes(b"not an image")
    settings = {"batch_size": 4, "max_bad_share": 1}
    extract_features(NumpyBackend(), class_folders(folders), tmp_path / "whole.npy", **settings)
    folder = tmp_path / "parts"
    for number in range(1, 6):
        extract_features(NumpyBackend(), class_folders(folders), Part(folder, number, 5), **settings)
    assert find_problems(folder, read_all=True) == []
    parts, whole = read_feature_file(folder), read_feature_file(tmp_path / "whole.npy")
    assert_same_features(parts, whole)
    assert list(parts.names) == list(whole.names)
    assert parts.facts["unreadable"] == 8
    export_features(folder, tmp_path / "again.npz")
    assert_same_features(read_feature_file(tmp_path / "again.npz"), whole)


# Bugs caught: features of batches that begin elsewhere, names or numbers of the part instead of the source, parts that
# overlap or leave out images, a table row of another image, an export that differs.
@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_equal_one_process(tmp_path, folders, whole, count, monkeypatch):
    monkeypatch.setattr(feature_parts, "TABLE_ROWS", 3)
    folder = make(folders, tmp_path / "parts", *range(count, 0, -1), count=count)
    parts = read_feature_file(folder)
    assert_same_features(parts, whole)
    assert (parts.facts["unreadable"], parts.class_names) == (1, whole.class_names)
    rows = np.array([17, 0, 8, 8])
    assert np.array_equal(parts.features[rows], whole.features[rows])
    for start, stop in ((0, 1), (3, 12), (18, 19), (5, 5)):
        assert np.array_equal(parts.features[start:stop], whole.features[start:stop])
        assert parts.names[start:stop] == list(whole.names[start:stop])
    entry = {"name": whole.names[9], "label": int(whole.labels[9]), "index": int(whole.index[9])}
    assert parts.names.entry(9) == entry
    for ending in (".npz", ".npy", ".parquet"):
        export_features(folder, tmp_path / f"export{ending}")
        assert_same_features(read_feature_file(tmp_path / f"export{ending}"), whole)
    with pytest.raises(UsageError, match=r"export.npz exists. .*--fresh"):
        export_features(folder, tmp_path / "export.npz")


# Bugs caught: a lock on the whole set; work of a killed part that is lost or done twice; other bytes.
@pytest.mark.multiprocess
def test_a_killed_part_resumes_beside_another(tmp_path, folders):
    def run(*words):
        return subprocess.run([sys.executable, SCRIPT, folders, *words], capture_output=True, text=True)

    assert run("2/2", "2").returncode == -signal.SIGKILL
    assert run("1/2").stdout == "0\n"
    assert [why for _, why in find_problems(tmp_path / "parts")] == ["part 2/2 is not finished"]
    assert run("2/2").stdout == "6\n"
    assert run("2/2").stdout == "11\n"  # complete
    assert run(tmp_path / "whole.npy").returncode == 0
    assert_same_features(read_feature_file(tmp_path / "parts"), read_feature_file(tmp_path / "whole.npy"))


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# Bugs caught: a damaged part that is believed or not named; a command that does not repair it.
@pytest.mark.parametrize(
    ("damage", "read_all", "problem"),
    [
        (lambda part: part.table.unlink(), False, "is missing"),
        (lambda part: part.array.unlink(), False, "is damaged: .*No such file"),
        (lambda part: os.truncate(part.array, 200), False, "is damaged"),
        (lambda part: os.truncate(part.table, 200), False, "is damaged"),
        (
            lambda part: np.save(part.array, np.ones((7, 5), np.float32)),
            False,
            "is damaged: it has 8 names and features .*7",
        ),
        (lambda part: flip_last_byte(part.array), True, "is damaged: its features have another SHA-256"),
    ],
)
def test_missing_and_damaged_parts_are_named(tmp_path, folders, damage, read_all, problem):
    folder = make(folders, tmp_path / "parts", 1, 2, 3)
    assert find_problems(folder, read_all=True) == []
    damage(part := Part(folder, 2, 3))
    [(found, why)] = find_problems(folder, read_all=read_all)
    assert found == part
    assert re.search(f"part 2/3 {problem}", why)
    if not read_all:
        with pytest.raises(DataError, match=r"must have all its parts\. Received: part 2/3 is"):
            read_feature_file(folder)
    line = command_of(part, read_facts(folder), fresh=read_all)
    assert line == (
        f"swav-tf features {folders} --kind class_folders --model model --batch 4 --output {folder} --part 2/3"
        + " --fresh" * read_all
    )
    make(folders, folder, 2, fresh=read_all)
    assert find_problems(folder, read_all=True) == []


# Bug caught: the advice to remove a feature file's facts, which it has none of.
def test_a_file_is_no_folder_of_parts(tmp_path):
    (tmp_path / "x.npy").touch()
    with pytest.raises(UsageError, match=r"x.npy must be a folder of features: it has no features.json"):
        read_facts(tmp_path / "x.npy")


# Bug caught: the command of an ONNX file without what it was opened with, which is refused or computes elsewhere.
@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("onnxruntime cpu fp32", ""),
        ("onnxruntime cuda fp16", "--provider cuda "),
        ("onnxruntime tensorrt int8", "--provider tensorrt "),
        ("openvino in bfloat16 fp32", "--provider openvino "),
        ("TensorRT 10.12 fp16", ""),
    ],
)
def test_the_command_opens_the_same_model(runner, options):
    source = {"kind": "digits", "path": None, "split": "test"}
    contract = str(Contract(256, 224, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "pooled"))
    facts = {"source": source, "model": {"path": "x.onnx", "runner": runner}, "batch_size": 4}
    line = "swav-tf features digits --kind digits --split test --model x.onnx --batch 4 "
    assert command_of(Part(Path("f"), 1, 2), facts, fresh=False) == f"{line}{options}--output f --part 1/2"
    facts["model"]["contract"] = contract
    options += "--view 256,224 --mean 0.5,0.4,0.3 --std 0.2,0.25,0.3 --output-name pooled "
    assert command_of(Part(Path("f"), 1, 2), facts, fresh=False) == f"{line}{options}--output f --part 1/2"


# Bugs caught: parts of two models, lists, or numbers of parts in one folder; pictures that were replaced.
def test_other_settings_are_refused(tmp_path, folders):
    folder = make(folders, tmp_path / "parts", 1)
    with pytest.raises(
        UsageError, match=r"other settings:\n  model.weights_sha256: was 'aaaa.*\n.*another --output"
    ):
        make(folders, folder, 2, model=NumpyBackend("b" * 64))
    with pytest.raises(UsageError, match=r"parts: was 3, now 4"):
        make(folders, folder, 2, count=4)
    make(folders, folder, 2, 3, model=NumpyBackend(path="elsewhere"))
    (folders / "cat" / "00.png").write_bytes((folders / "cat" / "01.png").read_bytes())
    with pytest.raises(UsageError, match=r"image files: other sizes or modification times"):
        make(folders, folder, 1)
    make(folders, folder, 3)  # none of its pictures
    other = make(folders, tmp_path / "other", 2, model=NumpyBackend("b" * 64))
    for name in ("npy", "parquet"):
        os.replace(other / f"part-00002-of-00003.{name}", folder / f"part-00002-of-00003.{name}")
    with pytest.raises(DataError, match=r"part 2/3 has other settings .*model.weights_sha256 'bbbb"):
        read_feature_file(folder)
    (folders / "cat" / "new.png").write_bytes((folders / "cat" / "01.png").read_bytes())
    with pytest.raises(UsageError, match=r"source.images: was 20, now 21"):
        make(folders, folder, 2)
    with pytest.raises(UsageError, match=r"at most 6 parts. Received: --part 1/7"):
        make(folders, tmp_path / "many", 1, count=7)


# Bugs caught: more files open than a process may have; names of all rows in memory for one.
def test_many_parts(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(feature_parts, "OPEN_FILES", 2)
    file = read_feature_file(make(folders, tmp_path / "parts", *range(1, 6), count=5))
    write_feature_file(replace(file, path=tmp_path / "x.npz"))
    assert isinstance(file.features, Rows)
    assert file.features._array.cache_info().currsize == 2
