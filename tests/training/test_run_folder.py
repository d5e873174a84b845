import json
import shutil

import pytest

from swav_tf.errors import UsageError
from swav_tf.training.run_folder import RunFolder
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
