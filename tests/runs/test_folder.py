"""The run folder: its lock, its recipe, earlier runs, metrics; and model.json."""

import json
from dataclasses import replace

import numpy as np
import pytest

from swav_tf.data.digits import Digits
from swav_tf.data.labels import LabeledData
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.recipe.pretraining import Model
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.folder import RunFolder, read_checkpoint
from swav_tf.runs.model_facts import ModelFacts, save_facts
from tests.classifiers import tiny_classifier_recipe
from tests.swav_models import tiny_recipe


# Bugs caught: two processes that write one folder; a lock that outlives its owner; leftovers that stay for good.
def test_one_writer_at_a_time(tmp_path):
    for name in (".part-d905c0ac-config.yaml", "notes.txt"):
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "notes.txt"]
        with pytest.raises(UsageError, match=r"is in use: process \d+"), RunFolder(tmp_path):
            pass
        with RunFolder(tmp_path, writer=False):
            pass
    with RunFolder(tmp_path):
        pass
    with pytest.raises(UsageError, match="writable folder"), RunFolder(tmp_path / "notes.txt" / "run"):
        pass


# Bug caught: a run among the user's images, which --fresh would move away.
def test_a_folder_of_other_files_is_refused(tmp_path):
    for name in ("b.png", "a.png", "slurm-12.out", "recipe.yaml", ".DS_Store"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"contains a\.png, b\.png\. Set another"), RunFolder(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with RunFolder(tmp_path) as folder:
        start(folder, tiny_recipe())
    (tmp_path / "a.png").touch()  # such as the demo's picture
    with RunFolder(tmp_path):
        pass


def start(folder, recipe, **options):
    """Begin a run and pass all later checks."""
    folder.begin(recipe, **options)
    folder.start(recipe, step=0, at_end=False)


# Bugs caught: other settings that enter a run; a harmless change that is refused; another kind of run.
def test_a_run_resumes_with_its_own_settings_only(tmp_path):
    with RunFolder(tmp_path) as folder:
        start(folder, tiny_recipe(train__batch_size=16))
        start(folder, tiny_recipe())  # before its first checkpoint a run has nothing to lose
        folder.checkpoints.mkdir()
        with pytest.raises(UsageError) as caught:
            folder.begin(tiny_recipe(train__batch_size=16, method__epsilon=0.03))
        assert "train.batch_size: was 8, now 16" in str(caught.value)
        assert "method.epsilon: was 0.05, now 0.03" in str(caught.value)
        start(folder, tiny_recipe(monitor__log_every_steps=7, data__threads=2, data__kind="tfrecord"))
        with pytest.raises(UsageError, match="contains a pretrain run"):
            folder.begin(tiny_classifier_recipe(ProbeRecipe), fresh=True)
    assert "log_every_steps: 7" in (tmp_path / "config.yaml").read_text()


def run_with_a_checkpoint(path, without=()):
    """Return a folder with a checkpoint, as a version that lacks some settings wrote it."""
    values = tiny_recipe().model_dump(mode="json")
    for section, setting in without:
        del values[section][setting]
    store = CheckpointStore(path / "checkpoints", kind="pretrain")
    store.write(3, {"weights": np.zeros(2, np.float32)}, {"recipe": values})
    return RunFolder(path)


# Bugs caught: settings of a damaged config.yaml that a run resumes with, or is refused for; a file that stays damaged
# or is rewritten without a warning.
def test_the_checkpoint_counts_where_config_yaml_differs(tmp_path, logged):
    folder = run_with_a_checkpoint(tmp_path)
    config = tmp_path / "config.yaml"
    damaged = tiny_recipe(method__epsilon=0.01, monitor__log_every_steps=7)
    save_recipe(damaged, config)
    changed = r"method.epsilon: was 0.05, now 0.01"
    with folder:
        with pytest.raises(UsageError, match=rf"step-000000003 differs:\n  {changed}"):
            folder.begin(damaged)
        assert load_recipe(config) == damaged
        with pytest.raises(UsageError, match=rf"edited or damaged[\s\S]*{changed}"):
            read_checkpoint(tmp_path, damaged)
        start(folder, tiny_recipe())
        [(level, text)] = logged
        assert level == "WARNING"
        assert "method.epsilon: was 0.01, now 0.05" in text
        assert "log_every_steps" not in text
        assert load_recipe(config) == tiny_recipe()
        start(folder, tiny_recipe(data__threads=2))
        assert len(logged) == 1
        read_checkpoint(tmp_path, load_recipe(config))


# Bug caught: a run that cannot be resumed, or read, since there is a new setting.
def test_a_setting_unknown_to_an_earlier_version_had_its_default(tmp_path):
    folder = run_with_a_checkpoint(tmp_path, [("method", "sinkhorn_iterations"), ("train", "seed")])
    with folder:
        folder.begin(tiny_recipe())
        read_checkpoint(tmp_path, tiny_recipe())
        with pytest.raises(UsageError, match=r"sinkhorn_iterations: was 3, now 5"):
            folder.begin(tiny_recipe(method__sinkhorn_iterations=5))


# Bug caught: rates that a longer schedule must move, which cannot.
def test_a_longer_run_may_move_the_steps_of_its_rates(tmp_path):
    def recipe(epochs, decay):
        return tiny_classifier_recipe(
            ProbeRecipe, train__epochs=epochs, optimizer__decay="steps", optimizer__decay_epochs=decay
        )

    facts = {"recipe": recipe(10, [5]).model_dump(mode="json")}
    CheckpointStore(tmp_path / "checkpoints", kind="probe").write(
        3, {"weights": np.zeros(2, np.float32)}, facts
    )
    with RunFolder(tmp_path) as folder:
        folder.begin(recipe(20, [10]))
        with pytest.raises(UsageError, match="decay_epochs"):
            folder.begin(recipe(10, [6]))


# Bug caught: lines that appear twice after a resume; a cut last line that breaks the file.
# Baselines are written at step 0. A run that ended before its first checkpoint writes them again.
@pytest.mark.parametrize(("step", "kept"), [(2, [0, 1, 2]), (0, [])])
def test_metrics_after_the_checkpoint_are_removed(tmp_path, step, kept):
    folder = RunFolder(tmp_path)
    lines = [json.dumps({"kind": "step", "step": step}) for step in (0, 1, 2, 3)]
    folder.metrics.write_text("\n".join(lines) + '\n{"kind": "st')
    folder.keep_metrics_until(step)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == kept


# Bugs caught: --fresh that deletes what was computed, or the record of collapsed attempts before anything is checked; that
# moves the user's own files; a number of an earlier run that is used again; that resumes a run without config.yaml.
def test_fresh_keeps_the_earlier_run(tmp_path):
    with RunFolder(tmp_path) as folder:
        (tmp_path / "job.sh").write_text("swav-tf pretrain ...")
        start(folder, tiny_recipe(), fresh=True)
        for number in (1, 2):
            for name in ("summary.json", "attempts.json", "confusion.png"):
                (tmp_path / name).write_text(str(number))
            with pytest.raises(UsageError, match="contains a pretrain run"):
                folder.begin(tiny_classifier_recipe(ProbeRecipe), fresh=True)
            start(folder, tiny_recipe(method__epsilon=0.03), fresh=True)
            for name in ("summary.json", "attempts.json", "confusion.png"):
                assert (tmp_path / f"previous-{number}" / name).read_text() == str(number)
            names = {path.name for path in tmp_path.iterdir()} - {"previous-1", "previous-2"}
            assert names == {".lock", "config.yaml", "job.sh"}
        (tmp_path / "previous-1").rename(tmp_path / "elsewhere")
        start(folder, tiny_recipe(), fresh=True)
        assert (tmp_path / "previous-3" / "elsewhere").exists()
        run_with_a_checkpoint(tmp_path)
        (tmp_path / "config.yaml").unlink()
        folder.begin(tiny_recipe(method__epsilon=0.03), fresh=True)
        assert (tmp_path / "previous-4" / "checkpoints").exists()
        assert not folder.checkpoints.exists()
        (tmp_path / "config.yaml").write_text("name: [")
        with pytest.raises(UsageError, match=r"not readable YAML[\s\S]*Remove this file"):
            folder.begin(tiny_recipe())
        folder.begin(tiny_recipe(), fresh=True)
        assert (tmp_path / "previous-5" / "config.yaml").exists()


FACTS = ModelFacts(
    model=Model(),
    mean=(0.5, 0.4, 0.3),
    std=(0.1, 0.2, 0.3),
    class_names=("cat", "größer", "0"),
    how="sgd",
    origin={"weights": "random", "recipe": "x"},
    train_images=3,
    train_sha256="0" * 64,
)


# Bugs caught: classes under each other's names or another normalization after an edit; files of before there were
# checksums that cannot be read.
@pytest.mark.parametrize(
    ("change", "readable"),
    [
        (lambda facts: facts["class_names"].reverse(), False),
        (lambda facts: facts.update(std=[0.1, 0.2, 0.4]), False),
        (lambda facts: facts["model"].update(head_hidden=7), False),
        (lambda facts: facts.update(sha256="0" * 64), False),
        (lambda facts: facts.pop("mean"), False),
        (lambda facts: "damaged", False),  # no object
        (lambda facts: facts.pop("sha256"), True),
        (lambda facts: None, True),
    ],
)
def test_an_edited_model_json_is_refused(change, readable, tmp_path):
    path = tmp_path / "model.json"
    FACTS.write(path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    changed = change(facts)
    path.write_text(json.dumps(changed if changed == "damaged" else facts))
    if readable:
        assert ModelFacts.read(path) == FACTS
        return
    with pytest.raises(UsageError, match=r"must contain an unchanged model\.json"):
        ModelFacts.read(path)


# Bug caught: a run that resumes on corrected labels, half of it trained on the old ones.
def test_a_classifier_resumes_with_its_labels_alone(tmp_path):
    folder = RunFolder(tmp_path)
    save_facts(folder, FACTS)  # of a version that recorded no labels
    labeled = replace(FACTS, train_labels_sha256="1" * 64)
    for _ in range(2):
        save_facts(folder, labeled)
    with pytest.raises(UsageError, match=r"images' labels: was 1+, now 2+"):
        save_facts(folder, replace(FACTS, train_labels_sha256="2" * 64))
    data = LabeledData(Digits("test"), np.arange(3), Digits("test"), np.arange(3), tuple(map(str, range(10))))
    one, other = (
        ModelFacts.of(tiny_recipe(), {}, replace(data, train_labels=np.array(labels)), "sgd")
        for labels in ([0, 1], [1, 0])
    )
    assert one.train_labels_sha256 != other.train_labels_sha256
