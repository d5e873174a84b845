import json
import shutil

import numpy as np
import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.folder import RunFolder, check_copy
from tests.swav_models import tiny_recipe


# Bug caught: two processes that write one folder; a lock that outlives its owner.
def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    with RunFolder(tmp_path):
        with pytest.raises(UsageError, match=r"Only one process .*process \d+"), RunFolder(tmp_path):
            pass
        with RunFolder(tmp_path, writer=False):
            pass
    with RunFolder(tmp_path):
        pass


# Bug caught: litter of killed processes, for ever.
def test_what_a_killed_process_had_not_finished_is_removed(tmp_path):
    for name in (".part-d905c0ac-config.yaml", ".part-00000000-summary.json"):
        (tmp_path / name).write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "notes.txt"]


# Bugs caught: other settings that slip into a run; a harmless one that is refused.
def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.save_recipe(tiny_recipe(train__batch_size=16))
        folder.save_recipe(tiny_recipe())  # before its first checkpoint a run has nothing to lose
        folder.checkpoints.mkdir()
        with pytest.raises(UsageError) as caught:
            folder.save_recipe(tiny_recipe(train__batch_size=16, method__epsilon=0.03))
        assert "train.batch_size: was 8, now 16" in str(caught.value)
        assert "method.epsilon: was 0.05, now 0.03" in str(caught.value)
        folder.save_recipe(tiny_recipe(monitor__log_every_steps=7, data__threads=2, data__kind="tfrecord"))
    assert "log_every_steps: 7" in (tmp_path / "config.yaml").read_text()


def run_with_a_checkpoint(path, recipe, without=()):
    """A folder, and in it the checkpoint of a run by that recipe, as a version without some settings wrote it."""
    values = recipe.model_dump(mode="json")
    for section, setting in without:
        del values[section][setting]
    store = CheckpointStore(path / "checkpoints", kind="pretrain")
    store.write(3, {"weights": np.zeros(2, np.float32)}, {"recipe": values})
    return RunFolder(path), store.read(3)


# Bugs caught: settings of a damaged config.yaml that a run goes on with, or is refused for; a checkpoint's settings
# that nobody asked for; a file that stays damaged, or is mended without a word.
def test_the_checkpoint_tells_the_settings_where_config_yaml_differs(tmp_path):
    folder, checkpoint = run_with_a_checkpoint(tmp_path, tiny_recipe())
    config = tmp_path / "config.yaml"
    damaged = tiny_recipe(method__epsilon=0.01, monitor__log_every_steps=7)
    save_recipe(damaged, config)
    with folder:
        with pytest.raises(
            UsageError, match=r"step-000000003 differs:\n  method.epsilon: was 0.05, now 0.01"
        ):
            folder.save_recipe(damaged)
        assert load_recipe(config) == damaged
        with pytest.raises(UsageError, match=r"edited or damaged[\s\S]*method.epsilon: was 0.05, now 0.01"):
            check_copy(config, damaged, checkpoint)
        said = folder.save_recipe(tiny_recipe())
        assert "method.epsilon: was 0.01, now 0.05" in said
        assert "log_every_steps" not in said
        assert load_recipe(config) == tiny_recipe()
        assert folder.save_recipe(tiny_recipe(data__threads=2)) is None
        check_copy(config, load_recipe(config), checkpoint)


# Bug caught: a run that cannot be gone on with, or read, since the program learnt a new setting.
def test_a_setting_that_an_earlier_version_did_not_know_was_at_its_default(tmp_path):
    without = [("method", "sinkhorn_iterations"), ("train", "seed")]
    folder, checkpoint = run_with_a_checkpoint(tmp_path, tiny_recipe(), without)
    with folder:
        assert folder.save_recipe(tiny_recipe()) is None
        check_copy(tmp_path / "config.yaml", tiny_recipe(), checkpoint)
        with pytest.raises(UsageError, match=r"sinkhorn_iterations: was 3, now 5"):
            folder.save_recipe(tiny_recipe(method__sinkhorn_iterations=5))


# Bug caught: lines that stand twice after a resumed run, or a cut last line that breaks the file.
def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    lines = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3)]
    folder.metrics.write_text("\n".join(lines) + '\n{"kind": "st')
    folder.keep_metrics_until(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


# Bug caught: --fresh that deletes what was computed.
def test_an_earlier_run_is_set_aside(tmp_path):
    with RunFolder(tmp_path) as folder:
        (tmp_path / "notes.txt").write_text("no run")
        assert folder.set_aside() is None
        assert (tmp_path / "notes.txt").exists()
        for number in (1, 2):
            folder.save_recipe(tiny_recipe())
            (tmp_path / "summary.json").write_text(str(number))
            assert folder.set_aside() == tmp_path / f"previous-{number}"
        shutil.rmtree(tmp_path / "previous-1")
        folder.save_recipe(tiny_recipe())
        assert folder.set_aside() == tmp_path / "previous-3"
    assert (tmp_path / "previous-2" / "summary.json").read_text() == "2"
    assert (tmp_path / "previous-1").exists() is False


# Bug caught: a traceback for a folder that cannot be made.
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--run-dir must be a folder"), RunFolder(tmp_path / "file" / "run"):
        pass
