import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluate.feature_file import read_feature_file
from evaluate.features import extract_features
from evaluate.images import open_images, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import Data
from tests.evaluate.models import NumpyRunner, class_folders

SCRIPT = Path(__file__).parent / "run_features.py"
FOURS = {"batch_size": 4, "shard_size": 4}


def directly(images, runner):
    views = view_images(images.source, range(len(images.source)), runner.input_view)
    return np.concatenate([runner.run(v.view[None])["features"] for v in views])


def ends(total, size):
    """Where batches of a shard end."""
    return [*range(size, total, size), total]


# Bugs caught: shards or batches put together wrongly, the last partial batch or shard left out, labels or names
# against other rows.
@pytest.mark.parametrize(("batch_size", "shard_size"), [(3, 7), (64, 20), (4, 3), (1, 1)])
def test_features_are_the_models(tmp_path, folders, batch_size, shard_size):
    images, runner, progress = class_folders(folders), NumpyRunner(), []
    result = extract_features(
        runner,
        images,
        tmp_path / "x.npy",
        batch_size=batch_size,
        shard_size=shard_size,
        on_progress=progress.append,
    )
    assert max(runner.batches) <= batch_size
    file = read_feature_file(tmp_path / "x.npy")
    np.testing.assert_allclose(file.rows.features, directly(images, NumpyRunner()), rtol=1e-5, atol=1e-5)
    assert file.rows.labels.tolist() == [0] * 10 + [1] * 10
    assert list(file.rows.names) == [images.source.image_name(i) for i in range(20)]
    assert file.facts["model"]["step"] == 3
    assert file.facts["class_names"] == ["cat", 'dög, "big"']
    assert (result.images, result.feature_dim, result.images_before, result.unreadable) == (20, 5, 0, {})
    done = [
        min(start + end, 20) for start in range(0, 20, shard_size) for end in ends(shard_size, batch_size)
    ]
    assert progress == list(dict.fromkeys(done))
    assert {p.name for p in tmp_path.iterdir()} == {"images", "x.npy", "x.npy.csv", "x.npy.json"}


def run_process(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


# Bugs caught: work that is lost or done twice after a kill, a half shard that is believed, another result.
@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, folders, ending):
    whole, killed = tmp_path / f"whole{ending}", tmp_path / f"killed{ending}"
    assert run_process(folders, whole).returncode == 0
    assert run_process(folders, killed, 5).returncode == -9  # in the third shard of four
    assert not killed.exists()
    shards = tmp_path / f"killed{ending}.shards"
    assert len(list(shards.glob("shard-*.npz"))) == 2
    (shards / ".part-1-shard-000002.npz").write_bytes(b"half a shard")
    again = run_process(folders, killed)
    assert (again.returncode, again.stdout) == (0, "8\n"), again.stderr
    assert not shards.exists()
    one, other = read_feature_file(whole), read_feature_file(killed)
    np.testing.assert_array_equal(one.rows.features, other.rows.features)
    assert (list(one.rows.names), one.facts) == (list(other.rows.names), other.facts)
    if ending == ".npy":
        assert whole.read_bytes() == killed.read_bytes()


class Killed(Exception):
    """Stands for whatever ends a process."""


def interrupted(runner, images, output, after=2, **settings):
    run = runner.run

    def run_or_die(views):
        if len(runner.batches) == after:
            raise Killed
        return run(views)

    runner.run = run_or_die
    with pytest.raises(Killed):
        extract_features(runner, images, output, **FOURS, **settings)
    runner.run = run


# Bug caught: shards of two models or settings put together in one file.
def test_an_interrupted_run_with_other_settings(tmp_path, folders):
    images, output = class_folders(folders), tmp_path / "x.npy"
    interrupted(NumpyRunner(), images, output)
    with pytest.raises(
        UsageError, match=r"begun with other settings:\n  shard_size: was 4, now 5\n.*--fresh"
    ):
        extract_features(NumpyRunner(), images, output, batch_size=4, shard_size=5)
    with pytest.raises(UsageError, match=r"model.weights_sha256: was 'aaaa"):
        extract_features(NumpyRunner("b" * 64), images, output, **FOURS)
    unlabelled = open_images(str(folders), like=Data(kind="images"))
    with pytest.raises(UsageError, match=r"source.kind: was 'class_folders', now 'images'"):
        extract_features(NumpyRunner(), unlabelled, output, **FOURS)
    result = extract_features(NumpyRunner("b" * 64), images, output, batch_size=4, shard_size=5, fresh=True)
    assert result.images_before == 0
    assert read_feature_file(output).facts["model"]["weights_sha256"] == "b" * 64


# Bug caught: a run folder that was moved taken for another model.
def test_a_model_may_move(tmp_path, folders):
    images, output, moved = class_folders(folders), tmp_path / "x.npy", NumpyRunner()
    interrupted(NumpyRunner(), images, output)
    moved.facts = dataclasses.replace(moved.facts, path="elsewhere")
    assert extract_features(moved, images, output, **FOURS).images_before == 8


# Bugs caught: a finished file that is computed again, or overwritten by another model's.
def test_a_finished_file(tmp_path, folders):
    images, output, runner = class_folders(folders), tmp_path / "x.npz", NumpyRunner()
    extract_features(runner, images, output)
    runner.batches.clear()
    again = extract_features(runner, images, output)
    assert (runner.batches, again.images, again.images_before) == ([], 20, 20)
    with pytest.raises(UsageError, match="is there already, and not of what is asked for"):
        extract_features(NumpyRunner("b" * 64), images, output)
    extract_features(NumpyRunner("b" * 64), images, output, fresh=True)
    assert read_feature_file(output).facts["model"]["weights_sha256"] == "b" * 64


# Bugs caught: shards that stay for ever when the end of the removal was interrupted; a traceback for damaged settings.
def test_what_an_interruption_at_the_very_end_left(tmp_path, folders):
    images, output = class_folders(folders), tmp_path / "x.npz"
    interrupted(NumpyRunner(), images, output)
    shards = tmp_path / "x.npz.shards"
    settings = (shards / "settings.json").read_text()
    (shards / "settings.json").write_text(settings[:50])
    with pytest.raises(DataError, match=r"settings.json is damaged.*--fresh"):
        extract_features(NumpyRunner(), images, output, **FOURS)
    (shards / "settings.json").write_text(settings)
    extract_features(NumpyRunner(), images, output, **FOURS)
    shards.mkdir()
    (shards / "shard-000003.npz").write_bytes(b"one of those that were put together")
    assert extract_features(NumpyRunner(), images, output).images_before == 20
    assert not shards.exists()


# Bugs caught: an unreadable image that shifts labels against features, that is not told, or that is forgotten when
# an interrupted run goes on.
def test_unreadable_images_are_left_out_and_listed(tmp_path, folders):
    good = directly(class_folders(folders), NumpyRunner())
    (folders / "cat" / "02.png").write_bytes(b"not an image")
    (folders / "cat" / "09.png").write_bytes((folders / "cat" / "09.png").read_bytes()[:60])
    images, output = class_folders(folders), tmp_path / "x.npy"
    interrupted(NumpyRunner(), images, output, max_bad_share=0.1)
    result = extract_features(NumpyRunner(), images, output, **FOURS, max_bad_share=0.1)
    assert result.images_before == 8
    file = read_feature_file(output)
    kept = [i for i in range(20) if i not in (2, 9)]
    assert file.rows.index.tolist() == kept
    assert file.rows.labels.tolist() == [0] * 8 + [1] * 10
    np.testing.assert_allclose(file.rows.features, good[kept], rtol=1e-5, atol=1e-5)
    assert sorted(result.unreadable) == ["cat/02.png", "cat/09.png"]
    listed = (tmp_path / "x.npy.unreadable.csv").read_text()
    assert "cat/02.png,not one of the formats" in listed.replace('"', "")
    assert file.facts["unreadable"] == 2
    assert extract_features(NumpyRunner(), images, output).unreadable == result.unreadable


# Bug caught: a feature file of what little could be read of a broken source.
def test_too_many_unreadable_images(tmp_path, folders):
    for number in range(3):
        (folders / "cat" / f"{number:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"share of 0.1 .*2 of 20. Received: 3, listed in .*--max-bad-share"):
        extract_features(NumpyRunner(), class_folders(folders), tmp_path / "x.npz", max_bad_share=0.1)
    assert not (tmp_path / "x.npz").exists()
    assert len((tmp_path / "x.npz.unreadable.csv").read_text().splitlines()) == 4
    for path in folders.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"At least one image must be readable. Received: 20"):
        extract_features(
            NumpyRunner(), class_folders(folders), tmp_path / "x.npz", max_bad_share=1, fresh=True
        )


# Bug caught: two processes that write the same shards.
def test_one_process_at_a_time(tmp_path, folders):
    images, output = class_folders(folders), tmp_path / "x.npz"
    told = []

    def another(_):
        if not told:
            with pytest.raises(UsageError, match="Only one process may write"):
                extract_features(NumpyRunner(), images, output)
            told.append(True)

    extract_features(NumpyRunner(), images, output, on_progress=another)
    assert told == [True]


# Bugs caught: a traceback for a full disk or a damaged shard; what was done before that is lost.
def test_a_full_disk_and_a_damaged_shard(tmp_path, folders, monkeypatch):
    images, output, flush = class_folders(folders), tmp_path / "x.npz", os.fsync
    calls = []

    def full(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # a folder takes no room
            calls.append(descriptor)
        if len(calls) == 4:  # settings, two shards, and then
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"No space left on device. Make room and give the same command again"
    ):
        extract_features(NumpyRunner(), images, output, **FOURS)
    shard = tmp_path / "x.npz.shards" / "shard-000001.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"shard-000001.npz is damaged.*Remove it"):
        extract_features(NumpyRunner(), images, output, **FOURS)
    shard.unlink()
    again = extract_features(NumpyRunner(), images, output, **FOURS)
    assert (again.images, again.images_before) == (20, 4)


# Bug caught: settings.json that cannot be read by a person or another version.
def test_settings_are_beside_the_shards(tmp_path, folders):
    interrupted(NumpyRunner(), class_folders(folders), tmp_path / "x.npz", after=1)
    settings = json.loads((tmp_path / "x.npz.shards" / "settings.json").read_text())
    assert (settings["batch_size"], settings["shard_size"], settings["view"]["resize"]) == (4, 4, 8)


# Bug caught: a class folder whose name is no UTF-8, at which the table beside the features cannot be written.
@pytest.mark.parametrize("ending", [".npz", ".npy", ".parquet"])
def test_names_of_classes_that_are_no_text(tmp_path, folders, ending):
    (folders / "cat").rename(folders / "c\udce9t")
    extract_features(NumpyRunner(), class_folders(folders), tmp_path / f"x{ending}")
    assert read_feature_file(tmp_path / f"x{ending}").class_names == ["c\\xe9t", 'dög, "big"']
