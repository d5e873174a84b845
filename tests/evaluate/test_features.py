import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluate.feature_file import read_feature_file
from evaluate.features import extract_features
from evaluate.images import open_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data
from tests.evaluate.models import NumpyBackend, class_folders, outputs_of

SCRIPT = Path(__file__).parent / "run_features.py"
FOURS = {"batch_size": 4, "save_seconds": 0}


class Stopped(Exception):
    """Represents whatever ends a process."""


def stop():
    raise Stopped


def interrupt(images, output, **settings):
    """Two batches of four are kept."""
    with pytest.raises(Stopped):
        extract_features(NumpyBackend(stop_after=2, stop=stop), images, output, **FOURS, **settings)


# Bugs caught: batches put together wrongly, the last partial batch left out, labels or names of other rows, a class
# folder whose name is not UTF-8.
@pytest.mark.parametrize(
    ("batch_size", "save_seconds", "ending"), [(3, 0, ".npy"), (64, 0, ".npz"), (4, 9, ".parquet")]
)
def test_features_are_the_models(tmp_path, folders, batch_size, save_seconds, ending):
    (folders / 'dög, "big"').rename(folders / "d\udce9g")
    images, model, progress = class_folders(folders), NumpyBackend(), []
    output = tmp_path / f"x{ending}"
    settings = {"batch_size": batch_size, "save_seconds": save_seconds, "on_progress": progress.append}
    result = extract_features(model, images, output, **settings)
    file = read_feature_file(output)
    expected = outputs_of(images.source, range(20))["features"]
    np.testing.assert_allclose(file.features, expected, rtol=1e-5, atol=1e-5)
    assert file.labels.tolist() == [0] * 10 + [1] * 10
    assert list(file.names) == [f"{name}/{i:02d}.png" for name in ("cat", "d\\xe9g") for i in range(10)]
    assert (file.facts["model"]["step"], file.class_names) == (3, ["cat", "d\\xe9g"])
    assert (result.images, result.feature_dim, result.images_before, result.unreadable) == (20, 5, 0, 0)
    assert progress == np.cumsum(model.batches).tolist()
    assert max(model.batches) <= batch_size
    companions = {"x.npy.csv", "x.npy.json"} if ending == ".npy" else set()
    assert {p.name for p in tmp_path.iterdir()} == {"images", output.name} | companions


# Bug caught: NaN that is saved, and whose neighbors and classes are then arbitrary.
def test_features_that_are_not_finite(tmp_path, folders):
    model = NumpyBackend()
    model.kernel[0, 0] = np.nan
    with pytest.raises(DataError, match=r"model must compute finite outputs\. Received: `features`"):
        extract_features(model, class_folders(folders), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def run_process(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


# Bugs caught: work that is lost or done twice after a kill, rows beyond the counter that are believed, other bytes.
@pytest.mark.multiprocess
@pytest.mark.parametrize("ending", [".npz", ".npy", ".parquet"])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, folders, ending):
    complete, killed = tmp_path / f"complete{ending}", tmp_path / f"killed{ending}"
    assert run_process(folders, complete).returncode == 0
    assert run_process(folders, killed, 5).returncode == -9
    assert not killed.exists()
    work = tmp_path / f"killed{ending}.work"
    assert json.loads((work / "progress.json").read_text())["rows"] == 15
    with (work / "features.f32").open("ab") as file:
        file.write(b"half a row")
    again = run_process(folders, killed)
    assert (again.returncode, again.stdout) == (0, "15\n"), again.stderr
    assert not work.exists()
    assert complete.read_bytes() == killed.read_bytes()


# Bugs caught: features of two models or settings in one file; a run folder that was moved, taken for another model.
def test_changed_settings_are_refused(tmp_path, folders):
    images, output = class_folders(folders), tmp_path / "x.npy"
    interrupt(images, output)
    with pytest.raises(
        UsageError, match=r"started with other settings:\n  batch_size: was 4, now 5\n.*--fresh"
    ):
        extract_features(NumpyBackend(), images, output, batch_size=5)
    with pytest.raises(UsageError, match=r"model.weights_sha256: was 'aaaa"):
        extract_features(NumpyBackend("b" * 64), images, output, **FOURS)
    unlabeled = open_images(str(folders), like=Data(), kind="images")
    with pytest.raises(UsageError, match=r"source.kind: was 'class_folders', now 'images'"):
        extract_features(NumpyBackend(), unlabeled, output, **FOURS)
    assert extract_features(NumpyBackend(path="elsewhere"), images, output, **FOURS).images_before == 8


# Bug caught: features of pictures that have been replaced by others of the same names.
def test_replaced_pictures_are_refused(tmp_path, folders):
    complete, begun = tmp_path / "x.npz", tmp_path / "y.npz"
    extract_features(NumpyBackend(), class_folders(folders), complete)
    interrupt(class_folders(folders), begun)
    (folders / "cat" / "00.png").write_bytes((folders / "cat" / "01.png").read_bytes())
    for output in (complete, begun):
        with pytest.raises(UsageError, match=r"image files: other sizes or modification times .*\n.*--fresh"):
            extract_features(NumpyBackend(), class_folders(folders), output, **FOURS)


# Bugs caught: a complete file that is computed again or overwritten; a work folder that stays after an interruption at
# the very end.
def test_a_complete_file(tmp_path, folders):
    images, output, model = class_folders(folders), tmp_path / "x.npz", NumpyBackend()
    extract_features(model, images, output)
    model.batches.clear()
    (tmp_path / "x.npz.work").mkdir()
    again = extract_features(model, images, output)
    assert (model.batches, again.images, again.images_before) == ([], 20, 20)
    assert not (tmp_path / "x.npz.work").exists()
    with pytest.raises(UsageError, match="exists and was created with other settings"):
        extract_features(NumpyBackend("b" * 64), images, output)
    assert extract_features(NumpyBackend("b" * 64), images, output, fresh=True).images_before == 0
    assert read_feature_file(output).facts["model"]["weights_sha256"] == "b" * 64


# Bugs caught: an unreadable image that shifts labels, that is not reported, or that is forgotten when a run resumes.
def test_unreadable_images_are_left_out_and_listed(tmp_path, folders):
    kept = [i for i in range(20) if i not in (2, 9)]
    expected = outputs_of(class_folders(folders).source, kept)["features"]
    (folders / "cat" / "02.png").write_bytes(b"not an image")
    (folders / "cat" / "09.png").write_bytes((folders / "cat" / "09.png").read_bytes()[:60])
    images, output = class_folders(folders), tmp_path / "x.npy"
    interrupt(images, output, max_bad_share=0.1)
    result = extract_features(NumpyBackend(), images, output, **FOURS, max_bad_share=0.1)
    assert result.images_before == 8
    file = read_feature_file(output)
    assert (file.index.tolist(), file.labels.tolist()) == (kept, [0] * 8 + [1] * 10)
    np.testing.assert_allclose(file.features, expected, rtol=1e-5, atol=1e-5)
    listed = (tmp_path / "x.npy.unreadable.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == ["name", "cat/02.png", "cat/09.png"]
    assert file.facts["unreadable"] == result.unreadable == 2
    assert extract_features(NumpyBackend(), images, output).unreadable == 2


# Bug caught: a feature file of the readable rest of a broken source.
def test_too_many_unreadable_images(tmp_path, folders):
    for number in range(3):
        (folders / "cat" / f"{number:02d}.png").write_bytes(b"x")
    output = tmp_path / "x.npz"
    with pytest.raises(
        DataError, match=r"3 of 20 images cannot .*--max-bad-share=0.1 allows at most 2 of 20"
    ):
        extract_features(NumpyBackend(), class_folders(folders), output, max_bad_share=0.1)
    assert not output.exists()
    assert len((tmp_path / "x.npz.unreadable.csv").read_text().splitlines()) == 4
    for path in folders.glob("*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"At least one image must be readable. Received: 20"):
        extract_features(NumpyBackend(), class_folders(folders), output, max_bad_share=1, fresh=True)


# Bug caught: a limit on unreadable images that the same command passes when it is run again.
def test_unreadable_images_of_earlier_calls_count(tmp_path, folders):
    for number in (1, 3, 5):
        (folders / "cat" / f"{number:02d}.png").write_bytes(b"x")
    settings = {"batch_size": 1, "save_seconds": 0, "max_bad_share": 0.1}
    for _ in range(3):
        with pytest.raises(DataError, match="3 of 20 images cannot"):
            extract_features(NumpyBackend(), class_folders(folders), tmp_path / "x.npz", **settings)


# Bugs caught: a traceback for a full disk or a damaged work folder; a full disk that loses earlier rows.
def test_a_full_disk_and_damage(tmp_path, folders, monkeypatch):
    images, output, fsync = class_folders(folders), tmp_path / "x.npz", os.fsync
    work = tmp_path / "x.npz.work"

    def full(descriptor):
        if (work / "features.f32").stat().st_size > 8 * 5 * 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"No space left on device. Free some space and run the same command again"
    ):
        extract_features(NumpyBackend(), images, output, **FOURS)
    monkeypatch.undo()
    for name, size in (("progress.json", 50), ("features.f32", 100)):
        intact = (work / name).read_bytes()
        (work / name).write_bytes(intact[:size])
        with pytest.raises(DataError, match=rf"{name}.* damaged.*--fresh"):
            extract_features(NumpyBackend(), images, output, **FOURS)
        (work / name).write_bytes(intact)
    again = extract_features(NumpyBackend(), images, output, **FOURS)
    assert (again.images, again.images_before) == (20, 8)
