"""A pretraining run that begins with weights that are there already."""

import json
import shutil

import numpy as np
import pytest

from export.graph import load_trained
from swav_tf.plumbing.errors import UsageError
from swav_tf.runs.checkpoint import CheckpointError
from swav_tf.runs.folder import RunFolder
from swav_tf.training.build import read_pretrained, start_with
from swav_tf.training.pretrain import pretrain
from swav_tf.weights.convert import import_weights
from tests.swav_models import tiny_recipe
from tests.tiny_run import tiny_run

LARGE = {"train__batch_size": 700, "train__epochs": 1}  # 2 steps


# Bugs caught: an import that is trained further as if its optimiser and position were known; a refusal that
# does not say what to do instead.
def test_an_import_is_not_gone_on_with(tmp_path):
    done = import_weights(tiny_run(), tmp_path / "run", overrides=["train.batch_size=700"])
    with pytest.raises(
        UsageError, match=r"holds imported weights .* pretrain \.\.\. --weights .*run --run-dir NEW"
    ):
        pretrain(done.recipe, run_dir=tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000000"]


# Bugs caught: weights that are drawn at random all the same, loaded a second time when the run goes on, or
# swapped under a run.
def test_a_run_begins_with_the_weights_of_another(tmp_path):
    # So low a rate that the weights can be told after two steps.
    recipe = tiny_recipe(**LARGE, optimizer__peak_learning_rate=1e-6, train__seed=5)
    source = read_pretrained(tiny_run())[0]
    result = pretrain(recipe, run_dir=tmp_path / "new", weights=tiny_run(), quiet=True)
    assert result.summary["steps"] == 2
    arrays = read_pretrained(tmp_path / "new")[0].arrays
    kernel = "backbone/layer2_0_conv2/kernel"
    np.testing.assert_allclose(arrays[kernel], source.arrays[kernel], atol=1e-5)
    np.testing.assert_allclose(arrays["head/hidden/kernel"], source.arrays["head/hidden/kernel"], atol=1e-5)
    assert int(arrays["optimizer/iterations"][0]) == 2
    record = json.loads((tmp_path / "new" / "started_from.json").read_text())
    assert record["sha256"] == source.facts["sha256"]

    again = pretrain(recipe, run_dir=tmp_path / "new", weights=tiny_run(), quiet=True)
    assert again.summary == result.summary  # a run that has ended is only looked at
    with pytest.raises(UsageError, match="did not begin with those of"):
        pretrain(recipe, run_dir=tmp_path / "new", weights=tmp_path / "new", quiet=True)


# Bugs caught: a backbone alone whose missing head is taken from nowhere; weights that are loaded in part.
def test_what_fits_and_what_does_not(tmp_path):
    from swav_tf.training.build import build_swav

    import_weights(tiny_run(), tmp_path / "backbone", backbone_only=True)
    source = read_pretrained(tiny_run())[0].arrays
    model = build_swav(tiny_recipe(model__backbone={"name": "resnet_small"}, model__prototypes=30))
    head = model.head.get_weights()
    before = [variable.numpy() for variable in model.weights]
    with RunFolder(tmp_path / "run") as folder:
        with pytest.raises(UsageError, match=r"prototypes/kernel: must be \(16, 30\), is \(16, 12\)"):
            start_with(model, tiny_run(), folder, resumed=False)
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))
        said = start_with(model, tmp_path / "backbone", folder, resumed=False)
    assert said == f"backbone of {tmp_path / 'backbone'}; head and prototypes are new"
    np.testing.assert_array_equal(
        model.backbone.get_layer("conv1").kernel.numpy(), source["backbone/conv1/kernel"]
    )
    assert all(np.array_equal(a, b) for a, b in zip(head, model.head.get_weights(), strict=True))

    # Bug caught: the record of weights that a run was to begin with and did not.
    with RunFolder(tmp_path / "run") as folder:
        assert (folder.path / "started_from.json").exists()
        assert start_with(model, None, folder, resumed=True) is None
        assert (folder.path / "started_from.json").exists()
        start_with(model, None, folder, resumed=False)
        assert not (folder.path / "started_from.json").exists()


# Bug caught: features and probes of an older checkpoint that pass for those of the newest.
def test_an_older_checkpoint_does_not_stand_in_for_a_damaged_one(tmp_path):
    run = shutil.copytree(tiny_run(), tmp_path / "run")
    [newest] = (run / "checkpoints").iterdir()
    later = newest.with_name("step-999999999")
    later.mkdir()
    with pytest.raises(
        CheckpointError, match=rf"step-999999999 is damaged[\s\S]*step {int(newest.name[5:])}\. To take"
    ):
        read_pretrained(run)
    assert read_pretrained(run, step=int(newest.name[5:]))[0].path == newest
    later.rmdir()
    assert read_pretrained(run)[0].path == newest


# Bug caught: features by other settings than the weights were trained with.
def test_an_edited_recipe_does_not_pass_for_the_trained_one(tmp_path):
    config = shutil.copytree(tiny_run(), tmp_path / "run") / "config.yaml"
    config.write_text(config.read_text().replace("threads: 1", "threads: 2"))
    assert read_pretrained(tmp_path / "run")[1].data.threads == 2
    config.write_text(config.read_text().replace("std: [0.228,", "std: [0.128,"))
    for read in (read_pretrained, load_trained):
        with pytest.raises(UsageError, match=r"augment.std: was \[0.228, .* now \[0.128,"):
            read(tmp_path / "run")
