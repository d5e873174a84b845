"""A run that collapses starts over with the next remedy."""

import json

import pytest

from swav_tf.recipe.files import load_recipe
from swav_tf.training import rescue
from swav_tf.training.rescue import pretrain_with_rescue
from tests.swav_models import tiny_recipe

# Codes that are nearly uniform: the loss stays at ln K.
COLLAPSES = {"method__epsilon": 50.0, "optimizer__peak_learning_rate": 1e-6}
SETTINGS = {
    "train__epochs": 1,
    "train__batch_size": 64,
    "model__prototypes": 12,
    "monitor__collapse_after_steps": 1,
}


class Killed(Exception):
    pass


# Bugs caught: an attempt that does not start over or repeats a remedy, a loop without end, a record that is lost with
# the attempt or by an interruption before the next one, a remedy that overrides a choice of the user's.
def test_a_collapse_is_rescued_at_most_three_times_across_an_interruption(tmp_path, monkeypatch):
    recipe, folder = tiny_recipe(**SETTINGS, **COLLAPSES), tmp_path / "run"
    train = rescue.pretrain

    def killed_at_the_second(*arguments, **options):
        if (folder / "attempts.json").exists():
            raise Killed
        return train(*arguments, **options)

    monkeypatch.setattr(rescue, "pretrain", killed_at_the_second)
    with pytest.raises(Killed):
        pretrain_with_rescue(recipe, run_dir=folder, quiet=True, keep=["method.prototypes_frozen_steps"])
    assert load_recipe(folder / "config.yaml") == recipe

    monkeypatch.setattr(rescue, "pretrain", train)
    result = pretrain_with_rescue(recipe, run_dir=folder, quiet=True, keep=["method.prototypes_frozen_steps"])
    attempts = result.summary["attempts"]
    overrides = [attempt["overrides"] for attempt in attempts]
    assert overrides == [
        ["method.epsilon=0.03"],
        ["method.queue.length=256"],
        ["augment.jitter.probability=0.4"],
    ]
    assert all(attempt["loss"] > 0.95 * attempt["ln_k"] for attempt in attempts)
    assert json.loads((folder / "summary.json").read_text())["attempts"] == attempts
    assert [(folder / f"previous-{number}").is_dir() for number in (1, 2, 3, 4)] == [True] * 3 + [False]
    used = load_recipe(folder / "config.yaml")
    assert (used.method.epsilon, used.method.queue.length, used.augment.jitter.probability) == (
        0.03,
        256,
        0.4,
    )
    assert result.summary["steps"] == load_recipe(folder / "config.yaml").train.epochs * (
        result.summary["images"] // 64
    )
