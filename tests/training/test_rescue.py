"""A run that collapses starts over with the next remedy."""

import json
from types import SimpleNamespace

import pytest

from swav_tf.recipe.auto import remedies
from swav_tf.recipe.files import load_recipe
from swav_tf.training import rescue
from swav_tf.training.callbacks import Collapsed
from swav_tf.training.rescue import pretrain_with_rescue
from tests.cli.command_line import write_noise
from tests.swav_models import tiny_recipe

FIGURES = {"step": 1, "loss": 2.0, "ln_k": 2.0, "projection_spread": 0.0}


# Bugs caught: an attempt that does not start over, a record that is lost with the attempt or by an interruption before
# the next one, an attempt that resumes the weights of the collapsed one.
def test_a_collapse_is_rescued_across_an_interruption(tmp_path, monkeypatch):
    write_noise(tmp_path / "images", [f"{number}.png" for number in range(32)])
    # Codes are nearly uniform and the rate is nearly 0: the loss stays at ln K.
    recipe = tiny_recipe(
        method__epsilon=50.0,
        optimizer__peak_learning_rate=1e-6,
        train__epochs=1,
        data__kind="images",
        data__path=str(tmp_path / "images"),
        monitor__collapse_after_steps=1,
    )
    folder = tmp_path / "run"
    monkeypatch.setattr(rescue, "MOST_RESCUES", 1)

    def interrupt(run_dir):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rescue, "_set_aside", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain_with_rescue(recipe, run_dir=folder, quiet=True)
    assert load_recipe(folder / "config.yaml") == recipe

    summary = pretrain_with_rescue(recipe, run_dir=folder, quiet=True).summary
    [attempt] = summary["attempts"]
    assert attempt["overrides"] == ["method.epsilon=0.01"]
    assert attempt["loss"] > 0.95 * attempt["ln_k"]
    assert json.loads((folder / "summary.json").read_text())["attempts"] == [attempt]
    assert load_recipe(folder / "config.yaml").method.epsilon == 0.01
    assert load_recipe(folder / "previous-1" / "config.yaml") == recipe
    assert (summary["resumed_from_step"], summary["steps"]) == (None, 4)


# Bugs caught: a remedy that is repeated or lost in later attempts, a loop without end, a remedy that overrides a
# choice of the user's.
def test_at_most_three_remedies_that_leave_the_settings_of_the_user(tmp_path, monkeypatch):
    tried = []

    def always_collapses(recipe, *, run_dir, fresh, rescue):
        tried.append((recipe, fresh))
        if rescue is None:
            return SimpleNamespace(summary={})
        if (remedy := rescue(remedies(recipe, 10))) is None:
            return SimpleNamespace(summary={})
        raise Collapsed("collapsed.", FIGURES, remedy)

    monkeypatch.setattr(rescue, "pretrain", always_collapses)
    # The last one is the same setting in another form.
    for frozen in ("method.prototypes_frozen_steps", "method.prototypes_frozen_epochs"):
        tried.clear()
        keep = [frozen]
        result = pretrain_with_rescue(tiny_recipe(), run_dir=tmp_path, fresh=True, keep=keep)
        assert [fresh for _, fresh in tried] == [True, False, False, False]
        overrides = [attempt["overrides"] for attempt in result.summary["attempts"]]
        assert overrides == [
            ["method.epsilon=0.01"],
            ["crops.0.scale=[0.7,1.0]", "crops.1.scale=[0.4,0.8]"],
            ["method.queue.length=32"],
        ]
    last = tried[-1][0]
    assert (last.method.epsilon, last.method.queue.length, last.crops[0].scale) == (0.01, 32, (0.7, 1.0))
    keep = ["crops", "method"]  # and what is below them
    result = pretrain_with_rescue(tiny_recipe(), run_dir=tmp_path, fresh=True, keep=keep)
    overrides = [override for attempt in result.summary["attempts"] for override in attempt["overrides"]]
    assert not [override for override in overrides if override.startswith(("crops.", "method."))]
