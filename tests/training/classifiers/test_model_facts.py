"""model.json: what is read is what was written."""

import json

import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Model
from swav_tf.runs.model_facts import ModelFacts

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


# Bugs caught: classes that are called by each other's names, images that are normalised otherwise, without a word.
@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["class_names"].reverse(),
        lambda told: told.update(std=[0.1, 0.2, 0.4]),
        lambda told: told["model"].update(head_hidden=7),
        lambda told: told.update(sha256="0" * 64),
        lambda told: told.pop("mean"),
    ],
)
def test_an_edited_file_is_refused(change, tmp_path):
    path = tmp_path / "model.json"
    FACTS.write(path)
    assert ModelFacts.read(path) == FACTS
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"must hold model\.json as it was written"):
        ModelFacts.read(path)


# Bug caught: probes of before there were checksums that cannot be used any more.
def test_a_file_without_a_checksum_is_read(tmp_path):
    path = tmp_path / "model.json"
    FACTS.write(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    del told["sha256"]
    path.write_text(json.dumps(told))
    assert ModelFacts.read(path) == FACTS
